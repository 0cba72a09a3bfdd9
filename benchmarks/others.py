"""What is not a step: memory of the loss, the loader, and how soon the command answers."""

import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.arms import Arm
from distill.config import DataConfig
from distill.data.examples import Examples
from distill.data.prepare import prepare_data


def extra_memory(arm: Arm) -> int:
    """Bytes by which one step raises the peak of resident memory above what its inputs take, in a new process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_measure_memory, args=(theirs, arm), daemon=True)
    process.start()
    measured = ours.recv()
    process.join()
    return measured


def _measure_memory(pipe: Any, arm: Arm) -> None:
    step = arm.build(**arm.settings)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _resident("VmRSS")
    step()
    pipe.send(_resident("VmHWM") - before)


def _resident(name: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


def loader_rate(input_length: int, batch: int, batches: int = 20) -> float:
    """Examples per second that the loader makes of prepared text, in one thread."""
    config = DataConfig(vocabulary=1024, input_length=input_length, train_tokens=1_000_000, test_examples=16)
    with tempfile.TemporaryDirectory() as directory:
        data = prepare_data(config, Path(directory), lambda message: None)
        examples = Examples(data, config, seed=0)
        examples.batch(range(batch))
        began = time.perf_counter()
        for number in range(batches):
            examples.batch(range(number * batch, (number + 1) * batch))
        return batch * batches / (time.perf_counter() - began)


def answer_seconds(*arguments: str, repeats: int = 5) -> float:
    """Median seconds from start to exit of ``switch-distill`` with these arguments."""
    command, seconds = [sys.executable, "-m", "pipelines.cli", *arguments], []
    for _ in range(repeats):
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)
