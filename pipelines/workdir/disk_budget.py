"""How much disk the stages of a run need: a function of their settings, known before one is computed, without torch."""

from pathlib import Path

from distill.config import TrainingConfig
from distill.data.prepared_data import example_lengths
from distill.io.disk import require_space, size
from distill.model_size import parameters
from pipelines.workdir.plan import baseline_training
from pipelines.workdir.stage import Stage
from pipelines.workdir.workspace import Workspace

_CHECKPOINTS = 3  # two are kept while the next is written


def check_space(workspace: Workspace, stages: list[Stage]) -> None:
    """Compare what the unfinished ones of ``stages`` will write with what is left.

    Models that are loaded, and students of their shape, are not counted: what they need is checked when their
    training starts.

    Raises:
        DiskFull: it is too little.
    """
    todo = [stage for stage in stages if not workspace.find(stage)]
    checkpoints = sorted(_checkpoint_bytes(workspace, stage) for stage in todo)[-workspace.config.jobs :]
    kept, there = sum(_kept_bytes(workspace, stage) for stage in todo), sum(_there(workspace, stage) for stage in todo)
    what = f"the rest of this run ({size(kept)} of models and labels, {size(sum(checkpoints))} of checkpoints)"
    if todo:
        require_space(workspace.directory, kept + sum(checkpoints) - there, what)


def _parameters(workspace: Workspace, stage: Stage) -> int:
    """Of the model that a stage makes; 0 where it depends on one that is loaded."""
    config = workspace.config
    if stage.kind in ("label", "report") or (config.teacher.checkpoints.get(stage.ratio or "")):
        return 0
    if stage.kind == "baseline" and config.teacher.checkpoints:
        return 0
    experts = config.teacher.ratios[stage.ratio] if stage.kind == "teacher" else 0
    return parameters(config.model, workspace.data.vocab_size, experts)


def _training(workspace: Workspace, stage: Stage) -> TrainingConfig | None:
    config = workspace.config
    if stage.kind == "distill":
        return config.of_variant(stage.variant).distill.training
    return {"baseline": baseline_training(config), "teacher": config.teacher.training}.get(stage.kind)


def _checkpoint_bytes(workspace: Workspace, stage: Stage) -> int:
    training = _training(workspace, stage)
    if training is None:
        return 0
    # The baseline's trunk and its two ends each keep two.
    number = _CHECKPOINTS + 4 if stage.kind == "baseline" else _CHECKPOINTS
    return number * training.checkpoint_bytes(_parameters(workspace, stage))


def _kept_bytes(workspace: Workspace, stage: Stage) -> int:
    if stage.kind == "label":
        return _label_bytes(workspace, stage)
    copies = 2 if stage.kind == "distill" else 1  # a student goes to MLflow's store too
    return copies * 4 * _parameters(workspace, stage)


def _label_bytes(workspace: Workspace, stage: Stage) -> int:
    from distill.data.cached_labels import labels_bytes

    settings = workspace.config.of_variant(stage.variant)
    targets = example_lengths(workspace.data, settings.data)[1].targets
    labels = settings.distill.labels.model_dump() | {"examples": settings.distill.labelled_examples}
    return labels_bytes({**labels, "targets": targets, "vocabulary": workspace.data.vocab_size})


def _there(workspace: Workspace, stage: Stage) -> int:
    """What an interrupted stage has written already."""
    directory: Path = stage.directory(workspace.directory)
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
