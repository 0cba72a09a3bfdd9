"""Between stages 2 and 3, where soft labels are cached: the teacher labels the training examples once."""

from distill.cached_labels import CachedLabels, make_labels
from distill.data import Examples
from pipelines.run import Outcome, StageRun
from pipelines.teacher import frozen_teacher
from pipelines.tracking import directory_digest


def compute(run: StageRun) -> Outcome:
    """Soft labels in ``labels/``, their size, and how much of the teacher's distribution they hold."""
    config, settings, source = run.config, run.config.distill, run.inputs["teacher"].model
    directory = run.directory / "labels"
    make_labels(
        frozen_teacher(run),
        Examples(run.data, config.data, seed=settings.labels.seed),
        settings.labels,
        directory,
        count=settings.labelled_examples,
        temperature=settings.temperature,
        batch_size=config.teacher.evaluation_batch_size,
        accelerator=run.accelerator,
        origin={"teacher": directory_digest(source), "data": run.data.digest},
        progress=run.directory / "checkpoints" / "progress.json",
        on_batch=run.bar.update,
    )
    labels = CachedLabels(directory)
    if run.tracked:
        run.tracked.log_params({"sha256": labels.facts["sha256"]})
        run.tracked.log_file(directory / "labels.json")
    metrics = {**labels.means(), "examples": len(labels), "bytes_per_token": labels.bytes_per_token}
    return Outcome(metrics, labels.facts, directory)
