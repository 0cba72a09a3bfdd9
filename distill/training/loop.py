"""The training loop of teacher, baseline and student.

The random numbers and the data of a forward pass are functions of (seed, step, number of the pass in its step). So a
run that was killed and resumed takes the same steps as an uninterrupted run, and so do several processes that share
the passes.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, patch_environment
from torch import nn

from distill.config import TrainingConfig
from distill.data.cached_labels import LabelledBatch, LabelledExamples
from distill.data.examples import IGNORE_INDEX, Batch, ExampleSet
from distill.io.disk import require_space
from distill.io.files import remove_temporary
from distill.models.build import count_parameters
from distill.optim.build import make_optimizer
from distill.processes import num_processes
from distill.training.best_weights import MAX_WEIGHTS, BestWeights, stored_weights, weights_directory
from distill.training.checkpoint import (
    MAX_CHECKPOINTS,
    Progress,
    checkpoints,
    load_checkpoint,
    mark_restart,
    newest_checkpoint,
    restart_point,
    save_checkpoint,
)
from distill.training.divergence import MAX_RESTARTS, NormWatch, TrainingDiverged
from distill.training.dropout import dropout_of
from distill.training.machine import keep_freed_memory, return_freed_memory
from distill.training.precision import resolve_precision
from distill.training.schedule import learning_rate
from distill.training.sharding import (
    callable_model,
    fsdp_requested,
    gathered_parameters,
    gathered_states,
    shard,
    unshard,
)
from distill.training.step import MetricWindow, micro_batch_indices, optimizer_step, prefetch, seed_pass
from distill.training.train_modules import TrainModule

_LARGE_MODEL = 50_000_000  # parameters


@dataclass(frozen=True)
class Hooks:
    """Callbacks of the training loop.

    ``on_step`` gets the step, the number of steps and the metrics (for a progress bar). ``on_metrics`` gets the step
    and the metrics every ``log_every`` steps. ``evaluate`` gets the step and may raise ``TrainingDiverged``.
    ``validate`` returns the quality on the validation split, for early stopping.
    ``on_attempt`` gets the number of restarts, at the start and after each restart; metrics that earlier attempts have
    logged for later steps are then void. ``say`` gets messages to the user.
    """

    on_step: Callable[[int, int, dict[str, float]], None] = lambda step, total, metrics: None
    on_metrics: Callable[[int, dict[str, float]], None] = lambda step, metrics: None
    evaluate: Callable[[int], None] = lambda step: None
    validate: Callable[[], float] | None = None
    on_attempt: Callable[[int], None] = lambda number: None
    say: Callable[[str], None] = lambda text: None


def make_accelerator(precision: Literal["auto", "bfloat16", "float32"]) -> Accelerator:
    """The accelerator of this process, with or without bfloat16 autocast.

    Gradient accumulation is 1 regardless of the environment, because the loop itself divides by the number of tokens.
    """
    os.environ.pop("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", None)
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"  # else transformers loads weights in one process only
    # Freed memory that is kept would include the full model, of which FSDP leaves a shard.
    (return_freed_memory if fsdp_requested() else keep_freed_memory)()
    # Without a GPU, accelerate joins several processes into a group only if cpu is true.
    cpu = num_processes() > 1 and not torch.accelerator.is_available()
    mixed_precision = "bf16" if resolve_precision(precision) == "bfloat16" else "no"
    with patch_environment(accelerate_use_fsdp="false"):  # accelerate shards on GPUs only; we shard ourselves
        return Accelerator(mixed_precision=mixed_precision, gradient_accumulation_steps=1, cpu=cpu)


def shares_weights(accelerator: Accelerator) -> bool:
    """Whether each process holds a shard of the weights in training (FSDP2)."""
    return accelerator.num_processes > 1 and fsdp_requested()


def train(
    objective: TrainModule,
    examples: ExampleSet | LabelledExamples,
    config: TrainingConfig,
    *,
    accelerator: Accelerator,
    directory: Path,
    seed: int,
    steps: int | None = None,
    stop: int | None = None,
    start: Path | None = None,
    gather_in_main: bool = False,
    hooks: Hooks | None = None,
) -> int:
    """Train ``objective.model`` in place, from the newest undamaged checkpoint in ``directory`` if there is one.

    Args:
        objective: returns the loss summed over target tokens, see ``distill.training.train_modules``.
        examples: training examples, with cached soft labels if ``objective`` reads them.
        directory: of the checkpoints.
        seed: of dropout and jitter.
        steps: length of the schedule; by default ``config.steps``.
        stop: the step to stop at, if the caller continues later with another length; by default ``steps``.
        start: a checkpoint to begin from if ``directory`` has none.
        gather_in_main: if the processes share the weights, leave the trained ones in the main process alone, in the
            memory of the machine: for a model that does not fit on a device.
        hooks: callbacks.

    Returns:
        The number of steps taken, which is ``stop`` unless training has stopped early.

    Raises:
        TrainingDiverged: training cannot continue from the loss or gradient, and ``config.on_divergence`` is "stop" or
            the run has used all its restarts. The last checkpoint is unchanged.
        DiskFull: there is no space for the checkpoints; the existing ones are complete.
        UserError: the processes cannot share a batch equally, or files of early stopping are damaged or missing.
    """
    hooks = hooks or Hooks()
    if count_parameters(objective.model) > _LARGE_MODEL:
        return_freed_memory()
    steps = steps or config.steps
    stop = steps if stop is None else stop
    micro_batches = micro_batch_indices(config, accelerator)
    found = newest_checkpoint(directory, hooks.say) if accelerator.is_main_process else None
    [found] = broadcast_object_list([found])
    loop, progress = TrainingLoop(objective, config, accelerator, directory, hooks), Progress()
    if begins_at := found or start:
        progress = load_checkpoint(begins_at, objective.model, loop.optimizer)
        if loop.best and hooks.validate and progress.step >= min(config.evaluate_every or stop, stop):
            loop.best.require_evaluations()  # the last step is evaluated too
    if accelerator.is_main_process:
        for place in (directory, weights_directory(directory)):
            remove_temporary(place)
        if progress.step < stop:
            _check_space(directory, objective, config)
    if not found and (config.on_divergence == "restart" or progress.step == stop):
        loop.save(progress)  # for the first restart; or for branches that begin at step 0
    with dropout_of(objective.model, config.dropout):
        while progress.step < stop and not loop.stops_early(progress.step):
            hooks.on_attempt(progress.restarts)
            pin = accelerator.device.type == "cuda"
            batches = prefetch(examples, micro_batches, range(progress.step, stop), pin=pin)
            try:
                progress = loop.take_steps(progress, batches, seed, steps, stop)
            except TrainingDiverged as error:
                progress = loop.go_back(error)
    accelerator.wait_for_everyone()
    accelerator.unwrap_model(loop.objective, keep_fp32_wrapper=False)
    if loop.best:
        loop.best.restore(progress.step, objective.model)
    if gather_in_main:
        unshard(objective, torch.device("cpu") if accelerator.is_main_process else None)
    else:
        unshard(objective, accelerator.device)
    accelerator.free_memory()
    return progress.step


class TrainingLoop:
    """The objects that all steps of a run share, and the current step."""

    def __init__(
        self, objective: TrainModule, config: TrainingConfig, accelerator: Accelerator, directory: Path, hooks: Hooks
    ):
        self.config, self.accelerator, self.directory, self.hooks = config, accelerator, directory, hooks
        self.unwrapped = objective.train()
        self.objective: nn.Module = objective  # is called; the parallel form
        sharded = shares_weights(accelerator)
        if sharded:
            self.objective = shard(objective, accelerator.device)
        else:
            objective.to(accelerator.device)
        self.optimizer = make_optimizer(objective, config, accelerator.mixed_precision)
        if not sharded:
            self.objective, self.optimizer = accelerator.prepare(objective, self.optimizer)
        self.step, self.restarts = 0, 0
        self.best = BestWeights(directory, config.patience) if config.patience else None

    def stops_early(self, step: int) -> bool:
        """Whether the quality on the validation split has not improved for ``config.patience`` evaluations."""
        return self.best is not None and self.best.is_exhausted(step)

    def evaluate(self, step: int) -> None:
        """Evaluate the model after ``step`` steps. Every process must call this method."""
        with callable_model(self.objective, self.unwrapped.model):
            self.hooks.evaluate(step)
            quality = self.hooks.validate() if self.best and self.hooks.validate else None
        if self.best and quality is not None:
            main = self.accelerator.is_main_process
            with gathered_parameters(self.unwrapped, keep=main):
                self.best.add(step, quality, self.unwrapped.model, write=main)

    def save(self, progress: Progress) -> None:
        """Save a checkpoint in the main process. Every process must call this method."""
        main = self.accelerator.is_main_process
        states = gathered_states(self.optimizer, keep=main)
        with gathered_parameters(self.unwrapped, keep=main):
            if main:
                save_checkpoint(self.directory, progress, self.unwrapped.model, states)

    def take_steps(
        self,
        progress: Progress,
        batches_of_steps: Iterator[list[Batch | LabelledBatch]],
        seed: int,
        steps: int,
        stop: int,
    ) -> Progress:
        """Train from ``progress.step`` to ``stop`` and save checkpoints; returns the progress of the last one."""
        config, accelerator, hooks = self.config, self.accelerator, self.hooks
        self.restarts, window = progress.restarts, MetricWindow()
        watch = NormWatch(progress.norms, config.gradient_clip)
        for step in range(progress.step, stop):
            began, done = time.perf_counter(), step + 1
            self.step = done
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(config, step, steps) * 0.5**self.restarts
            made = next(batches_of_steps)
            processed = sum(self._count_tokens(batch) for batch in made)
            batches = [batch.to(accelerator.device) for batch in made]
            self.unwrapped.step = step
            reseed = partial(seed_pass, seed, step)
            sums, tokens = optimizer_step(self.objective, self.optimizer, batches, config, accelerator, watch, reseed)
            metrics = window.add(sums, tokens, processed, began)
            hooks.on_step(done, steps, metrics)

            if done % config.log_every == 0 or done == stop:
                restarts = {"restarts": self.restarts} if self.restarts else {}
                hooks.on_metrics(done, {**metrics, **restarts, "learning_rate": self.optimizer.param_groups[0]["lr"]})
                window = MetricWindow()
            # After the last step, the caller's own evaluation could no longer restart training.
            last = done == stop and (config.on_divergence == "restart" or self.best is not None)
            if last or (config.evaluate_every and done % config.evaluate_every == 0):
                self.evaluate(done)
            if done % config.checkpoint_every == 0 or done == stop or self.stops_early(done):
                progress = Progress(done, self.restarts, norms=tuple(watch.norms))
                self.save(progress)
            if self.stops_early(done):
                break
        return progress

    def _count_tokens(self, batch: Batch | LabelledBatch) -> int:
        """Number of input and target tokens, without padding."""
        inputs = batch.input_ids != self.unwrapped.model.config.pad_token_id
        return int(inputs.sum() + (batch.labels != IGNORE_INDEX).sum())

    def go_back(self, error: TrainingDiverged) -> Progress:
        """Load the checkpoint to restart from, with half the learning rate, or stop as the config says.

        Raises:
            TrainingDiverged: the run stops; the message names the cause.
        """
        path = restart_point(self.directory) if self.config.on_divergence == "restart" else None
        if path is None or self.restarts == MAX_RESTARTS:
            after = f" after {self.restarts} restarts" if self.restarts else ""
            other = "" if self.config.on_divergence == "restart" else ", or set on_divergence to restart"
            raise TrainingDiverged(
                f"training stopped at step {self.step}{after}: {error}; the last checkpoint is kept. "
                f"Lower learning_rate or raise warmup_steps{other}"
            ) from error
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            mark_restart(path, self.restarts + 1)
        self.accelerator.wait_for_everyone()
        self.optimizer.zero_grad()
        progress = load_checkpoint(path, self.unwrapped.model, self.optimizer)
        self.hooks.say(
            f"Diverged at step {self.step}: {error}; resuming from step {progress.step} with 1/{2**progress.restarts} "
            "of the learning rate"
        )
        return progress


def _check_space(directory: Path, objective: nn.Module, config: TrainingConfig) -> None:
    """Require space for one more than are kept: old checkpoints and weights are removed after new ones are written."""
    parameters = sum(parameter.numel() for parameter in objective.parameters())
    needed, there = (MAX_CHECKPOINTS + 1) * config.checkpoint_bytes(parameters), checkpoints(directory)
    if config.patience:
        needed += (MAX_WEIGHTS + 1) * 4 * parameters
        there += stored_weights(directory)
    needed -= sum(file.stat().st_size for path in there for file in path.iterdir())
    require_space(directory, needed, f"training (checkpoints of {parameters:,} parameters)")
