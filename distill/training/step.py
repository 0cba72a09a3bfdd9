"""What a training step is given, and the means of what it gives: batches by process, its seed, a window of metrics."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from accelerate import Accelerator

from distill.config import TrainingConfig
from distill.data.cached_labels import LabelledBatch, LabelledExamples
from distill.data.examples import Batch, Examples


def micro_batch_indices(config: TrainingConfig, accelerator: Accelerator) -> Callable[[int], list[range]]:
    """Which examples this process takes at a step, per micro-batch; over all processes, each exactly once.

    The processes take turns, so that with micro-batches of one size any number of them make the same forward passes.
    """
    processes, rank = accelerator.num_processes, accelerator.process_index
    micro = config.examples_per_pass(processes)

    def indices(step: int) -> list[range]:
        starts = range(step * config.batch_size + rank * micro, (step + 1) * config.batch_size, micro * processes)
        return [range(start, start + micro) for start in starts]

    return indices


def prefetch(
    examples: Examples | LabelledExamples, micro_batches: Callable[[int], list[range]], steps: range
) -> Iterator[list[Batch | LabelledBatch]]:
    """The micro-batches of each step, made in a thread while the step before runs."""

    def make(step: int) -> list[Batch | LabelledBatch]:
        return [examples.batch(indices) for indices in micro_batches(step)]

    with ThreadPoolExecutor(max_workers=1) as pool:
        coming = [pool.submit(make, step) for step in steps[:1]]
        for step in steps:
            batches = coming.pop().result()
            coming = [pool.submit(make, step + 1)] if step + 1 < steps.stop else []
            yield batches


def seed_pass(seed: int, step: int, number: int) -> None:
    """Dropout and jitter of a step's forward pass ``number``, whichever process makes it, interrupted before or not."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step, number)).generate_state(1, np.uint64)[0]))


class MetricWindow:
    """Sums since the last logged step."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # and the tokens of the steps that had a value
        self.processed, self.seconds = 0, 0.0

    def add(
        self, sums: dict[str, torch.Tensor], tokens: torch.Tensor, processed: int, began: float
    ) -> dict[str, float]:
        """Means per target token, and the tokens (inputs and targets of this process) per second of the steps alone."""
        for name, value in sums.items():
            total, count = self.sums.get(name, (0, 0))
            self.sums[name] = total + value, count + tokens
        self.processed += processed
        means = {name: float(total / count) for name, (total, count) in self.sums.items()}
        self.seconds += time.perf_counter() - began  # after float(), which waits for the device
        return {**means, "tokens_per_second": self.processed / self.seconds}
