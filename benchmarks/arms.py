"""Arms of a comparison: each in a process of its own, timed in turns on an otherwise idle machine.

Processes of their own, because threads and memory are settings of a process: an arm runs as its user would run it.
While one is timed, the others wait for a message.
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
class Arm:
    """``build(**settings)`` gives a step; ``work`` is what one step does, in tokens, examples or operations."""

    name: str
    build: Build
    settings: dict[str, Any] = field(default_factory=dict)
    work: float = 1.0
    repeats: int = 1  # steps in one timing, for short ones
    warmup: int = 1  # timings before the first that counts


@dataclass
class Timing:
    """Seconds per step, one figure per round, and the step's work."""

    name: str
    seconds: list[float]
    work: float
    peak_bytes: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def rate(self) -> float:
        """Work per second."""
        return self.work / self.median

    def facts(self) -> dict[str, Any]:
        spread = {"median": self.median, "min": min(self.seconds), "max": max(self.seconds)}
        return {"seconds": spread, "rounds": len(self.seconds), "rate": self.rate, "peak_bytes": self.peak_bytes}


def alternate(arms: list[Arm], rounds: int) -> dict[str, Timing]:
    """Time every arm once a round, in turns; each arm's process lives from the first round to the last."""
    context = multiprocessing.get_context("spawn")
    workers = []
    for arm in arms:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, arm), daemon=True)
        process.start()
        workers.append((arm, process, ours))
        _receive(arm, ours)  # built and warm before the next one begins
    seconds: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for _ in range(rounds):
        for arm, _, pipe in workers:
            pipe.send("time")
            seconds[arm.name].append(_receive(arm, pipe))
    timings = {}
    for arm, process, pipe in workers:
        pipe.send("stop")
        timings[arm.name] = Timing(arm.name, seconds[arm.name], arm.work, _receive(arm, pipe))
        process.join()
    return timings


def ratios(slow: Timing, fast: Timing) -> dict[str, float]:
    """How many times the rate of ``slow`` ``fast`` reaches: of the medians, and the range over rounds."""
    scale = fast.work / slow.work
    each = [s / f * scale for s, f in zip(slow.seconds, fast.seconds, strict=True)]
    return {"median": fast.rate / slow.rate, "min": min(each), "max": max(each)}


def _serve(pipe: Any, arm: Arm) -> None:
    try:
        step = arm.build(**arm.settings)
        for _ in range(arm.warmup * arm.repeats):
            step()
        pipe.send(None)
        while pipe.recv() == "time":
            began = time.perf_counter()
            for _ in range(arm.repeats):
                step()
            pipe.send((time.perf_counter() - began) / arm.repeats)
        pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    except Exception as error:  # said by the process that asked
        pipe.send(error)


def _receive(arm: Arm, pipe: Any) -> Any:
    message = pipe.recv()
    if isinstance(message, Exception):
        raise RuntimeError(f"{arm.name}: {message}") from message
    return message
