"""Stage 3: train the student on hard and soft labels, by default 0.75 hard and 0.25 soft (section 4.2 of the paper)."""

import numpy as np
from transformers import T5ForConditionalGeneration

from distill.data.cached_labels import CachedLabels, LabelledExamples
from distill.data.examples import Examples
from distill.errors import UserError
from distill.evaluation import evaluate
from distill.models.build import count_parameters, place
from distill.training.loop import train
from distill.training.matching import Matching
from distill.training.train_modules import HardAndCachedLabels, HardAndSoftLabels, HardLabels, TrainModule
from pipelines.runner.stage_run import Outcome, StageRun
from pipelines.stages.teacher import frozen_teacher


def compute(run: StageRun) -> Outcome:
    """Train the student, save it, and save the loss of every evaluated example.

    Raises:
        UserError: an input is damaged.
        TrainingDiverged: a loss is not finite.
    """
    config, settings = run.config, run.config.distill
    held_out = Examples(run.data, config.data, seed=None)
    student = T5ForConditionalGeneration.from_pretrained(run.inputs["init"].read("model"), use_safetensors=True)
    place(student, run.accelerator.device)

    def measure() -> tuple[float, np.ndarray]:
        return evaluate(student, held_out, batch_size=config.teacher.evaluation_batch_size, accelerator=run.accelerator)

    train(
        *_objective_and_examples(run, student),
        settings.training,
        accelerator=run.accelerator,
        directory=run.directory / "checkpoints",
        seed=run.seed,
        hooks=run.hooks(lambda: {"eval/quality": measure()[0]}),
    )
    quality, losses = measure()
    run.save_losses(losses)
    parameters = count_parameters(student)
    facts = {"parameters": parameters, "steps": settings.training.steps}
    run.save_model(student)
    return Outcome({"quality": quality, "parameters": parameters}, facts)


def _objective_and_examples(
    run: StageRun, student: T5ForConditionalGeneration
) -> tuple[TrainModule, Examples | LabelledExamples]:
    """The training module and its examples. Loads a teacher only if the module needs its logits or hidden states."""
    config, settings = run.config, run.config.distill
    examples = Examples(run.data, config.data, seed=run.seed)
    mix = settings.model_dump(include={"hard_fraction", "temperature", "soft_start"})
    if settings.reads_cached_labels:
        labels = CachedLabels(run.inputs["label"].read("labels/labels.json").parent)
        labelled = LabelledExamples(Examples(run.data, config.data, seed=settings.labels.seed), labels)
        return HardAndCachedLabels(student, **mix), labelled
    if not settings.runs_teacher:
        return HardLabels(student), examples
    matching = Matching(settings.match, settings.match_weight, settings.match_steps) if settings.match else None
    running = frozen_teacher(run)
    if running.streamed:
        raise UserError(
            f"teacher {run.ratio} does not fit into memory, so it cannot run at each step; set distill.soft_labels to "
            "cached and distill.match to [], or raise teacher.memory"
        )
    return HardAndSoftLabels(student, running.model, **mix, matching=matching), examples
