"""The measurement of a model: its losses on the evaluated examples, and for a task its answers to their inputs."""

from typing import Any

import numpy as np
from transformers import PreTrainedModel

from distill.evaluation import evaluate
from distill.generation import generate
from distill.io.files import write_json
from distill.models.layerwise import Forward, by_batch
from distill.processes import is_main_process
from distill.tasks.examples import PairExamples
from pipelines.runner.stage_data import evaluated_examples
from pipelines.runner.stage_run import StageRun


def measure(run: StageRun, model: PreTrainedModel, forward: Forward = by_batch) -> tuple[float, np.ndarray]:
    """Evaluate a model on ``data.eval_split``.

    Args:
        run: the stage.
        model: a T5 or Switch model.
        forward: the forward pass; another one than ``by_batch`` if the model does not fit into memory.

    Returns:
        The quality, and the mean loss of each evaluated example in nats per target token, [E].
    """
    examples = evaluated_examples(run.data, run.config.data)
    size = run.config.teacher.evaluation_batch_size
    return evaluate(model, examples, batch_size=size, accelerator=run.accelerator, forward=forward)


def answer(run: StageRun, model: PreTrainedModel) -> list[str] | None:
    """The greedy answers of a model in memory to the evaluated examples, [E]; None without a task."""
    if run.config.task is None:
        return None
    examples = evaluated_examples(run.data, run.config.data)
    assert isinstance(examples, PairExamples)
    with run.accelerator.autocast():
        ids = generate(
            model,
            examples.inputs(),
            max_length=run.config.task.max_target,
            batch_size=run.config.teacher.evaluation_batch_size,
            accelerator=run.accelerator,
        )
    tokenizer: Any = run.data.tokenizer
    return [tokenizer.decode(one, skip_special_tokens=True) for one in ids]


def validation_quality(run: StageRun, model: PreTrainedModel) -> float:
    """The quality on the validation split, for early stopping."""
    config = run.config.data.model_copy(update={"eval_split": "validation"})
    size = run.config.teacher.evaluation_batch_size
    return evaluate(model, evaluated_examples(run.data, config), batch_size=size, accelerator=run.accelerator)[0]


def save_results(run: StageRun, losses: np.ndarray, answers: list[str] | None, prefix: str = "") -> None:
    """Write the losses [E] and answers [E], which the report reads, to PREFIXlosses.json and PREFIXanswers.json.

    Raises:
        TrainingDiverged: a loss is not finite.
    """
    run.save_losses(losses, f"{prefix}losses")
    if answers is not None and is_main_process():
        write_json(run.directory / f"{prefix}answers.json", answers)
