"""The measurement of a model: its losses on the evaluated examples, and for a task its answers to their inputs."""

from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedModel

from distill.evaluation import evaluate
from distill.generation import generate
from distill.io.files import write_json
from distill.models.layerwise import Forward, by_batch
from distill.processes import is_main_process
from distill.tasks.examples import PairExamples
from pipelines.runner.stage_data import evaluated_examples, task_data
from pipelines.runner.stage_run import StageRun


class Measured(NamedTuple):
    """The figures of a model on E examples."""

    quality: float  # nats per target token
    losses: np.ndarray  # [E], mean of each example
    answers: list[str] | None  # [E], greedy; None without a task


def measure(run: StageRun, model: PreTrainedModel, forward: Forward = by_batch, *, answers: bool = True) -> Measured:
    """Evaluate a model on ``data.eval_split``.

    Args:
        run: the stage.
        model: a T5 or Switch model.
        forward: the forward pass of a model that does not fit into memory.
        answers: whether to generate answers if the run has a task.
    """
    examples = evaluated_examples(run.data, run.config.data)
    size = run.config.teacher.evaluation_batch_size
    quality, losses = evaluate(model, examples, batch_size=size, accelerator=run.accelerator, forward=forward)
    if run.config.task is None or not answers:
        return Measured(quality, losses, None)
    assert isinstance(examples, PairExamples)
    with run.accelerator.autocast():
        ids = generate(
            model,
            examples.inputs(),
            max_length=run.config.task.max_target,
            batch_size=size,
            accelerator=run.accelerator,
        )
    tokenizer: Any = task_data(run.data).tokenizer
    return Measured(quality, losses, [tokenizer.decode(one, skip_special_tokens=True) for one in ids])


def validation_quality(run: StageRun, model: PreTrainedModel) -> float:
    """The quality on the validation split, for early stopping."""
    config = run.config.data.model_copy(update={"eval_split": "validation"})
    size = run.config.teacher.evaluation_batch_size
    return evaluate(model, evaluated_examples(run.data, config), batch_size=size, accelerator=run.accelerator)[0]


def save_measured(run: StageRun, measured: Measured, prefix: str = "") -> None:
    """Write the losses and answers, which the report reads, to PREFIXlosses.json and PREFIXanswers.json.

    Raises:
        TrainingDiverged: a loss is not finite.
    """
    run.save_losses(measured.losses, f"{prefix}losses")
    if measured.answers is not None and is_main_process():
        write_json(run.directory / f"{prefix}answers.json", measured.answers)
