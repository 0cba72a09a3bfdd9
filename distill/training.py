"""The one training loop, for teacher, baseline and student.

Every random number of a step is a function of (seed, step), and so is the data: a run that is killed and resumed
takes the same steps as one that is not.
"""

import ctypes
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from distill.adafactor import Adafactor
from distill.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from distill.config import TrainingConfig
from distill.data import IGNORE_INDEX, Batch, Examples

# Numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


class TrainingDiverged(RuntimeError):
    """Loss or gradient is not finite. The message says at which step and what to change."""


@dataclass(frozen=True)
class Hooks:
    """What the caller wants to hear: each step (for a progress bar), and the metrics of every few steps."""

    on_step: Callable[[int, int, dict[str, float]], None] = lambda step, total, metrics: None
    on_metrics: Callable[[int, dict[str, float]], None] = lambda step, metrics: None
    evaluate: Callable[[int], None] = lambda step: None


def make_accelerator(precision: Literal["auto", "bfloat16", "float32"]) -> Accelerator:
    """Devices and processes, with bfloat16 autocast or without.

    Gradient accumulation stays 1 whatever the environment says: the loop divides by its own count of tokens.
    """
    os.environ.pop("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", None)
    _keep_freed_memory()
    bfloat16 = precision == "bfloat16" or (precision == "auto" and _multiplies_bfloat16())
    return Accelerator(mixed_precision="bf16" if bfloat16 else "no", gradient_accumulation_steps=1)


def learning_rate(config: TrainingConfig, step: int, steps: int) -> float:
    """The rate of optimizer step ``step`` (from 0) in a run of ``steps``.

    Linear warm-up, then ``inverse_sqrt``: lr * sqrt(warmup / step), as T5 was trained, with a last part
    (``cooldown``) that falls linearly to zero; or ``cosine``: half a period down to zero.
    """
    warmup = config.warmup_steps
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "cosine":
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
    trunk = trunk_steps(config, steps)
    rate = config.learning_rate * math.sqrt(max(warmup, 1) / max(min(step, trunk), warmup, 1))
    return rate * (steps - step) / (steps - trunk + 1) if step >= trunk and steps > trunk else rate


def trunk_steps(config: TrainingConfig, steps: int) -> int:
    """How many of the first steps do not depend on ``steps``: runs of any longer length share them."""
    if config.schedule == "cosine":
        return min(config.warmup_steps, steps)
    return max(steps - round(config.cooldown * steps), min(config.warmup_steps, steps))


def train(
    objective: nn.Module,
    examples: Examples,
    config: TrainingConfig,
    *,
    accelerator: Accelerator,
    directory: Path,
    seed: int,
    steps: int | None = None,
    stop: int | None = None,
    start: Path | None = None,
    hooks: Hooks | None = None,
) -> None:
    """Train ``objective.model`` in place, from the newest checkpoint in ``directory`` if there is one.

    Args:
        objective: gives the loss summed over target tokens, see ``distill.objectives``.
        steps: length that the schedule is for; ``config.steps`` unless told otherwise.
        stop: the step to stop at, where the caller goes on later with another length; ``steps`` otherwise.
        start: a checkpoint to begin from where ``directory`` has none.

    Raises:
        TrainingDiverged: loss or gradient not finite; the last checkpoint is untouched.
        UserError: the batch cannot be shared among the processes.
    """
    hooks = hooks or Hooks()
    steps = steps or config.steps
    stop = steps if stop is None else stop
    micro_batches = _split_batch(config, accelerator)
    model = objective.to(accelerator.device).model
    optimizer = make_optimizer(objective, config)
    begin, saved = 0, checkpoints(directory)
    if saved or start:
        begin = load_checkpoint(saved[-1] if saved else start, model, optimizer)
    bare = objective  # accelerate may wrap it
    objective, optimizer = accelerator.prepare(objective, optimizer)
    objective.train()

    window, batches_of_steps = _Window(), _one_ahead(examples, micro_batches, range(begin, stop))
    for step in range(begin, stop):
        began = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step, steps)
        batches = [batch.to(accelerator.device) for batch in next(batches_of_steps)]
        _seed_step(seed, step, accelerator.process_index)
        bare.step = step
        sums, tokens = optimizer_step(objective, optimizer, batches, config, accelerator, step)
        processed = sum(batch.input_ids.numel() + batch.labels.numel() for batch in batches)
        metrics = window.add(sums, tokens, processed, began)
        hooks.on_step(step + 1, steps, metrics)

        done = step + 1
        if done % config.log_every == 0 or done == stop:
            hooks.on_metrics(done, {**metrics, "learning_rate": optimizer.param_groups[0]["lr"]})
            window = _Window()
        if config.evaluate_every and done % config.evaluate_every == 0:
            hooks.evaluate(done)
        if (done % config.checkpoint_every == 0 or done == stop) and accelerator.is_main_process:
            save_checkpoint(directory, done, model, optimizer)
    if not checkpoints(directory) and accelerator.is_main_process:
        save_checkpoint(directory, begin, model, optimizer)  # a trunk of no steps: branches begin here
    accelerator.wait_for_everyone()
    accelerator.unwrap_model(objective, keep_fp32_wrapper=False)
    accelerator.free_memory()


def optimizer_step(
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: list[Batch],
    config: TrainingConfig,
    accelerator: Accelerator,
    step: int,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """One update from all micro-batches of all processes, with one denominator: the target tokens of the step."""
    tokens = torch.stack([(batch.labels != IGNORE_INDEX).sum() for batch in batches]).sum()
    tokens = accelerator.reduce(tokens, "sum")
    sums: dict[str, torch.Tensor] = {}
    for number, batch in enumerate(batches, start=1):
        with accelerator.no_sync(objective) if number < len(batches) else nullcontext():
            loss, metrics = objective(*batch)
            # Processes average their gradients; times their number, that is the sum that we divide.
            accelerator.backward(loss * (accelerator.num_processes / tokens))
        for name, value in metrics.items():
            sums[name] = sums.get(name, 0) + value.float()
    norm = accelerator.clip_grad_norm_(objective.parameters(), config.gradient_clip)
    if not torch.isfinite(norm + sums["loss"]):
        raise TrainingDiverged(
            f"training stopped at step {step + 1}: loss {float(sums['loss'] / tokens):.3g}, gradient norm "
            f"{float(norm):.3g}; the last checkpoint is kept. Lower learning_rate or raise warmup_steps"
        )
    optimizer.step()
    optimizer.zero_grad()
    return accelerator.reduce(sums, "sum"), tokens


class _Window:
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


def _split_batch(config: TrainingConfig, accelerator: Accelerator) -> Callable[[int], list[range]]:
    """Which examples this process takes at a step, per micro-batch; over all processes, each exactly once."""
    processes, rank = accelerator.num_processes, accelerator.process_index
    micro = config.examples_per_pass(processes)

    def indices(step: int) -> list[range]:
        starts = range(step * config.batch_size + rank * micro, (step + 1) * config.batch_size, micro * processes)
        return [range(start, start + micro) for start in starts]

    return indices


def _one_ahead(examples: Examples, micro_batches: Callable[[int], list[range]], steps: range) -> Iterator[list[Batch]]:
    """The micro-batches of each step, made in a thread while the step before runs."""

    def make(step: int) -> list[Batch]:
        return [examples.batch(indices) for indices in micro_batches(step)]

    with ThreadPoolExecutor(max_workers=1) as pool:
        coming = [pool.submit(make, step) for step in steps[:1]]
        for step in steps:
            batches = coming.pop().result()
            coming = [pool.submit(make, step + 1)] if step + 1 < steps.stop else []
            yield batches


def _seed_step(seed: int, step: int, rank: int) -> None:
    """Dropout and jitter of a step, whether or not the run was interrupted before it."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0]))


def make_optimizer(objective: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW or Adafactor; norms and position biases are not decayed."""
    decayed, plain = [], []
    for name, parameter in objective.named_parameters():
        (decayed if parameter.ndim > 1 and "relative_attention_bias" not in name else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if config.optimizer == "adafactor":
        return Adafactor(groups, lr=config.learning_rate)
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def _keep_freed_memory() -> None:
    """Let glibc reuse large blocks instead of returning them: on a CPU, each step would pay for the page faults."""
    if platform.libc_ver()[0] != "glibc" or torch.cuda.is_available():
        return
    mallopt = ctypes.CDLL(None).mallopt
    for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**26), (_M_ARENA_MAX, 1)):
        mallopt(option, value)


def _multiplies_bfloat16() -> bool:
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
