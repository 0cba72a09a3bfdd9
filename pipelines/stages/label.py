"""Cached soft labels, between stages 2 and 3: the teacher labels the training examples once."""

from distill.data.cached_labels import CachedLabels
from distill.data.make_labels import make_labels
from pipelines.runner.stage_data import training_examples
from pipelines.runner.stage_run import Outcome, StageRun
from pipelines.stages.answer import answered_pairs
from pipelines.stages.teacher import frozen_teacher
from pipelines.workdir.teacher_files import teacher_digest


def compute(run: StageRun) -> Outcome:
    """Write soft labels to ``labels/``.

    Returns:
        Their number, their size in bytes per token, and the share of the teacher's distribution that they keep.

    Raises:
        UserError: the teacher is damaged.
    """
    _make(run, lead=True)
    labels = CachedLabels(run.directory / "labels")
    metrics = {**labels.means(), "examples": len(labels), "bytes_per_token": labels.bytes_per_token}
    return Outcome(metrics, labels.facts)


def help_compute(run: StageRun) -> None:
    """Make a part of the labels that another command computes.

    Raises:
        UserError: the teacher is damaged.
    """
    _make(run, lead=False)


def _make(run: StageRun, *, lead: bool) -> None:
    config, settings, teacher = run.config, run.config.distill, run.inputs["teacher"]
    running = frozen_teacher(run)
    make_labels(
        running.model,
        training_examples(
            run.data,
            config.data,
            seed=settings.labels.seed,
            batch_size=settings.training.batch_size,
            answered=answered_pairs(run),
        ),
        settings.labels,
        run.directory / "labels",
        count=settings.num_labelled_examples,
        temperature=settings.temperature,
        batch_size=config.teacher.evaluation_batch_size,
        accelerator=run.accelerator,
        origin={"teacher": teacher_digest(teacher), "data": run.data.digest},
        progress=run.directory / "checkpoints" / "progress.json",
        lead=lead,
        forward=running.forward,
        on_batch=run.bar.update,
    )
