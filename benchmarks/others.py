"""Measurements other than the time of a step: the memory of a step, the loader, and the duration of a command."""

import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.timing import Candidate
from distill.config import DataConfig
from distill.data.examples import Examples
from distill.data.prepare import prepare_data

_BATCHES = 20  # number of timed batches of the loader


def extra_memory(candidate: Candidate) -> int:
    """Peak resident memory of one step in bytes, minus the memory of its inputs. It is measured in a new process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_memory, args=(sender, candidate), daemon=True)
    process.start()
    measured = receiver.recv()
    process.join()
    return measured


def _measure_memory(pipe: Any, candidate: Candidate) -> None:
    step = candidate.build(**candidate.settings)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the peak
    before = _resident("VmRSS")
    step()
    pipe.send(_resident("VmHWM") - before)


def _resident(name: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


def loader_rate(input_length: int, batch: int) -> float:
    """Examples per second that the loader makes from prepared text, in one thread.

    Args:
        input_length: tokens of an input.
        batch: examples per batch.
    """
    config = DataConfig(vocabulary=1024, input_length=input_length, train_tokens=1_000_000, test_examples=16)
    with tempfile.TemporaryDirectory() as directory:
        data = prepare_data(config, Path(directory), lambda message: None)
        examples = Examples(data, config, seed=0)
        examples.batch(range(batch))
        start = time.perf_counter()
        for number in range(_BATCHES):
            examples.batch(range(number * batch, (number + 1) * batch))
        return batch * _BATCHES / (time.perf_counter() - start)


def command_seconds(*arguments: str, repeats: int = 5) -> float:
    """Median duration of the command ``switch-distill`` with these arguments, in seconds."""
    command, seconds = [sys.executable, "-m", "pipelines.cli", *arguments], []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
