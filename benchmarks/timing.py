"""Timing of candidates in turns, each in its own process. Nothing else should run on the machine.

The settings of threads and memory belong to a process, so a candidate in its own process runs as it would for its user.
While one candidate is timed, the others wait for a message.
"""

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Build = Callable[..., Callable[[], Any]]  # settings -> one step


@dataclass
class Candidate:
    """An implementation to time. ``build(**settings)`` makes its step."""

    name: str
    build: Build
    settings: dict[str, Any] = field(default_factory=dict)
    work: float = 1.0  # tokens, examples or operations of one step
    repeats: int = 1  # steps per timing; several if a step is short
    warmup: int = 1  # timings that are discarded before the first round


@dataclass
class Timing:
    """The measurements of a candidate."""

    name: str
    seconds: list[float]  # per step, one value for each round
    work: float  # as in Candidate
    peak_bytes: int  # peak resident memory of the process

    @property
    def median(self) -> float:
        """Seconds per step."""
        return statistics.median(self.seconds)

    @property
    def rate(self) -> float:
        """Work per second, from the median."""
        return self.work / self.median

    def facts(self) -> dict[str, Any]:
        """The values for JSON: seconds (median, min, max), rounds, rate, peak_bytes."""
        spread = {"median": self.median, "min": min(self.seconds), "max": max(self.seconds)}
        return {"seconds": spread, "rounds": len(self.seconds), "rate": self.rate, "peak_bytes": self.peak_bytes}


def alternate(candidates: list[Candidate], rounds: int) -> dict[str, Timing]:
    """Time all candidates in turns, once per round. The process of a candidate runs from the first round to the last.

    Returns:
        Name of a candidate -> its measurements.

    Raises:
        RuntimeError: the step of a candidate failed.
    """
    context = multiprocessing.get_context("spawn")
    workers = []
    for candidate in candidates:
        pipe, child_pipe = context.Pipe()
        process = context.Process(target=_run_candidate, args=(child_pipe, candidate), daemon=True)
        process.start()
        workers.append((candidate, process, pipe))
        _receive(candidate, pipe)  # waits until the candidate is built and warm
    seconds: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    for _ in range(rounds):
        for candidate, _, pipe in workers:
            pipe.send("time")
            seconds[candidate.name].append(_receive(candidate, pipe))
    timings = {}
    for candidate, process, pipe in workers:
        pipe.send("stop")
        timings[candidate.name] = Timing(
            candidate.name, seconds[candidate.name], candidate.work, _receive(candidate, pipe)
        )
        process.join()
    return timings


def ratios(slow: Timing, fast: Timing) -> dict[str, float]:
    """The rate of ``fast`` divided by the rate of ``slow``: the ratio of the medians, and the range over rounds."""
    scale = fast.work / slow.work
    by_round = [
        slow_seconds / fast_seconds * scale
        for slow_seconds, fast_seconds in zip(slow.seconds, fast.seconds, strict=True)
    ]
    return {"median": fast.rate / slow.rate, "min": min(by_round), "max": max(by_round)}


def _run_candidate(pipe: Any, candidate: Candidate) -> None:
    try:
        step = candidate.build(**candidate.settings)
        for _ in range(candidate.warmup * candidate.repeats):
            step()
        pipe.send(None)
        while pipe.recv() == "time":
            start = time.perf_counter()
            for _ in range(candidate.repeats):
                step()
            pipe.send((time.perf_counter() - start) / candidate.repeats)
        pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    except Exception as error:  # the parent process raises it
        pipe.send(error)


def _receive(candidate: Candidate, pipe: Any) -> Any:
    message = pipe.recv()
    if isinstance(message, Exception):
        raise RuntimeError(f"{candidate.name}: {message}") from message
    return message
