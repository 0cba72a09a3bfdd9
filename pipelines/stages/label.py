"""Cached soft labels, between stages 2 and 3: the teacher labels the training examples once."""

from distill.data.cached_labels import CachedLabels, make_labels
from distill.data.examples import Examples
from distill.io.files import directory_digest
from pipelines.runner.stage_run import Outcome, StageRun
from pipelines.stages.teacher import frozen_teacher


def compute(run: StageRun) -> Outcome:
    """Write soft labels to ``labels/``.

    Returns:
        Their number, their size in bytes per token, and the share of the teacher's distribution that they keep.

    Raises:
        UserError: the teacher is damaged.
    """
    config, settings, source = run.config, run.config.distill, run.inputs["teacher"].model
    directory = run.directory / "labels"
    make_labels(
        frozen_teacher(run),
        Examples(run.data, config.data, seed=settings.labels.seed),
        settings.labels,
        directory,
        count=settings.num_labelled_examples,
        temperature=settings.temperature,
        batch_size=config.teacher.evaluation_batch_size,
        accelerator=run.accelerator,
        origin={"teacher": directory_digest(source), "data": run.data.digest},
        progress=run.directory / "checkpoints" / "progress.json",
        on_batch=run.bar.update,
    )
    labels = CachedLabels(directory)
    metrics = {**labels.means(), "examples": len(labels), "bytes_per_token": labels.bytes_per_token}
    return Outcome(metrics, labels.facts)
