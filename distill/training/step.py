"""One optimizer step: the batches of each process, the seed of each forward pass, the update, a window of metrics."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from distill.config import TrainingConfig
from distill.data.cached_labels import LabelledBatch, LabelledExamples
from distill.data.examples import IGNORE_INDEX, Batch, ExampleSet
from distill.training.divergence import NormWatch


def micro_batch_indices(config: TrainingConfig, accelerator: Accelerator) -> Callable[[int], list[range]]:
    """A function from a step to this process's example indices, one range per micro-batch.

    Over all processes, each example of a batch occurs exactly once. The processes take micro-batches in turn. So for a
    given micro-batch size, any number of processes runs the same forward passes.

    Raises:
        UserError: the processes cannot share a batch equally.
    """
    processes, rank = accelerator.num_processes, accelerator.process_index
    micro = config.examples_per_pass(processes)

    def indices(step: int) -> list[range]:
        starts = range(step * config.batch_size + rank * micro, (step + 1) * config.batch_size, micro * processes)
        return [range(start, start + micro) for start in starts]

    return indices


def prefetch(
    examples: ExampleSet | LabelledExamples,
    micro_batches: Callable[[int], list[range]],
    steps: range,
    *,
    pin: bool = False,
) -> Iterator[list[Batch | LabelledBatch]]:
    """Yield the micro-batches of each step. A thread makes them during the previous step.

    ``pin`` puts them in page-locked memory, which a GPU copies while the program goes on.
    """

    def make(step: int) -> list[Batch | LabelledBatch]:
        batches = [examples.batch(indices) for indices in micro_batches(step)]
        return [_pinned(batch) for batch in batches] if pin else batches

    with ThreadPoolExecutor(max_workers=1) as pool:
        coming = [pool.submit(make, step) for step in steps[:1]]
        for step in steps:
            batches = coming.pop().result()
            coming = [pool.submit(make, step + 1)] if step + 1 < steps.stop else []
            yield batches


def _pinned(value: Any) -> Any:
    """A tensor, or a named tuple of tensors and named tuples, in page-locked memory."""
    return value.pin_memory() if isinstance(value, torch.Tensor) else type(value)(*map(_pinned, value))


def seed_pass(seed: int, step: int, number: int) -> None:
    """Seed dropout and jitter of forward pass ``number`` of a step, independently of process and restarts."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step, number)).generate_state(1, np.uint64)[0]))


def optimizer_step(
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: list[Batch | LabelledBatch],
    config: TrainingConfig,
    accelerator: Accelerator,
    watch: NormWatch,
    reseed: Callable[[int], None] = lambda number: None,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Update the weights once from all micro-batches of all processes.

    The sum of the losses is divided by the number of target tokens of the step, in all processes.

    Args:
        batches: the micro-batches of this process.
        watch: checks loss and gradient norm before the update.
        reseed: is called before each forward pass with the number of the pass, counted over all processes.

    Returns:
        The metrics, summed over target tokens, and the number of target tokens; of all processes, on the CPU.

    Raises:
        TrainingDiverged: ``watch`` rejects the loss or the gradient. The weights are unchanged.
    """
    tokens = torch.stack([(batch.labels != IGNORE_INDEX).sum() for batch in batches]).sum()
    tokens = accelerator.reduce(tokens, "sum")
    sums: dict[str, torch.Tensor] = {}
    for number, batch in enumerate(batches):
        reseed(number * accelerator.num_processes + accelerator.process_index)
        with accelerator.no_sync(objective) if number + 1 < len(batches) else nullcontext():
            with accelerator.autocast():  # accelerate has not prepared a sharded objective
                loss, metrics = objective(*batch)
            # Gradients are averaged over processes, so the factor makes them a sum before the division by tokens.
            accelerator.backward(loss * (accelerator.num_processes / tokens))
        for name, value in metrics.items():
            sums[name] = sums.get(name, 0) + value.float()
    norm = accelerator.clip_grad_norm_(objective.parameters(), config.gradient_clip)
    sums = accelerator.reduce(sums, "sum")
    # The program waits for the device here. All metrics are read before the update, so that nothing waits for that.
    sums, tokens = {name: value.cpu() for name, value in sums.items()}, tokens.cpu()
    watch.check(float(sums["loss"] / tokens), float(norm))
    optimizer.step()
    optimizer.zero_grad()
    return sums, tokens


class MetricWindow:
    """Metrics summed since the last logged step."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # sum, and tokens of the steps that had a value
        self.processed, self.seconds = 0, 0.0

    def add(
        self, sums: dict[str, torch.Tensor], tokens: torch.Tensor, processed: int, began: float
    ) -> dict[str, float]:
        """Add a step and return the window's means per target token, and ``tokens_per_second``.

        Args:
            sums: metrics summed over target tokens.
            tokens: number of target tokens in all processes.
            processed: number of input and target tokens of this process.
            began: ``time.perf_counter()`` at the start of the step; time between steps does not count.
        """
        for name, value in sums.items():
            total, count = self.sums.get(name, (0, 0))
            self.sums[name] = total + value, count + tokens
        self.processed += processed
        means = {name: float(total / count) for name, (total, count) in self.sums.items()}
        self.seconds += time.perf_counter() - began
        return {**means, "tokens_per_second": self.processed / self.seconds}
