"""Cached soft labels, between stages 2 and 3: the teacher labels the training examples once."""

from distill.data.cached_labels import CachedLabels, make_labels
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
    config, settings, teacher = run.config, run.config.distill, run.inputs["teacher"]
    directory = run.directory / "labels"
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
        directory,
        count=settings.num_labelled_examples,
        temperature=settings.temperature,
        batch_size=config.teacher.evaluation_batch_size,
        accelerator=run.accelerator,
        origin={"teacher": teacher_digest(teacher), "data": run.data.digest},
        progress=run.directory / "checkpoints" / "progress.json",
        forward=running.forward,
        on_batch=run.bar.update,
    )
    labels = CachedLabels(directory)
    metrics = {**labels.means(), "examples": len(labels), "bytes_per_token": labels.bytes_per_token}
    return Outcome(metrics, labels.facts)
