"""Disk space that the stages of a run need, computed from their settings before any stage runs. Imports no torch."""

from pathlib import Path

from rich.filesize import decimal

from distill.config import DistillConfig, TrainingConfig
from distill.data.label_arrays import labels_bytes
from distill.io.disk import require_space
from distill.model_size import num_parameters
from distill.models.header import Shape, shape_of
from pipelines.config.run_config import RunConfig
from pipelines.workdir.plan import training_of
from pipelines.workdir.stage import Stage
from pipelines.workdir.workspace import Workspace

BASELINE_LENGTHS = 2
# Of each part of a training; one more while the next one is written.
_KEPT = 2  # checkpoints
_KEPT_WEIGHTS = 3  # best weights, with early stopping


def check_space(workspace: Workspace, stages: list[Stage]) -> None:
    """Compare the bytes that the unfinished stages will write with the free space of the work directory.

    Loaded models and students of their shape are not counted. The training of such a student checks the space when it
    starts.

    Raises:
        DiskFull: there is not enough free space.
    """
    todo = [stage for stage in stages if not workspace.find(stage)]
    outputs = [_output_bytes(workspace, stage) for stage in todo]
    checkpoints = [_checkpoint_bytes(workspace, stage) for stage in todo]
    # At most what is counted of a stage, so that the files of one do not lower the need of the others.
    counted = zip(todo, outputs, checkpoints, strict=True)
    written = sum(min(_written_bytes(workspace, stage), sum(needs)) for stage, *needs in counted)
    at_a_time = sum(sorted(checkpoints)[-workspace.config.jobs :])
    sizes = f"{decimal(sum(outputs))} of models and labels, {decimal(at_a_time)} of checkpoints"
    if todo:
        needed = sum(outputs) + at_a_time - written
        require_space(workspace.directory, needed, f"the rest of this run ({sizes})")


def _parameters(workspace: Workspace, stage: Stage) -> int:
    """Number of parameters of the model that a stage makes; 0 if its size depends on a loaded model."""
    config = workspace.config
    if stage.kind in ("answer", "label", "report") or (config.teacher.checkpoints.get(stage.ratio or "")):
        return 0
    if stage.command == "baseline" and config.teacher.checkpoints:
        return 0
    return built_model(config, stage, workspace.data.vocab_size)[1]


def built_model(config: RunConfig, stage: Stage, vocabulary_size: int) -> tuple[Shape, int]:
    """The shape of the model that a stage makes from the section ``model``, and its number of parameters.

    Students and baselines can have sizes of their own. The shape of a teacher is that of its dense layers.
    """
    model, experts, decoder_layers = config.model, 0, config.model.num_layers
    if stage.kind in ("init", "distill"):
        student = config.of_variant(stage.variant).student
        model = model.model_copy(update={"d_ff": student.d_ff or model.d_ff})
        decoder_layers = student.num_decoder_layers or decoder_layers
    elif stage.command == "baseline":
        model = model.model_copy(update={"d_ff": config.baseline.d_ff or model.d_ff})
    elif stage.kind == "teacher" and stage.ratio:
        experts = config.teacher.ratios[stage.ratio]
    shape = {**shape_of(model, vocabulary_size), "num_decoder_layers": decoder_layers}
    return shape, num_parameters(model, vocabulary_size, experts, num_decoder_layers=decoder_layers)


def _checkpoint_bytes(workspace: Workspace, stage: Stage) -> int:
    training, lengths = training_of(workspace.config, stage), 1
    if stage.kind == "baseline":
        lengths = BASELINE_LENGTHS
    elif stage.kind in ("distill", "long-baseline"):
        lengths += len(workspace.config.of_variant(stage.variant).distill.lengths)
    return 0 if training is None else checkpoints_bytes(training, _parameters(workspace, stage), lengths)


def checkpoints_bytes(training: TrainingConfig, parameters: int, lengths: int = 1) -> int:
    """Bytes of all checkpoints and best weights that a training to this number of lengths has at a time."""
    # A branch for each length, and a part of the trunk before each but the last. With early stopping there is no trunk.
    parts = lengths if training.patience else 2 * lengths - 1
    weights = (parts * _KEPT_WEIGHTS + 1) * 4 * parameters if training.patience else 0
    return (parts * _KEPT + 1) * training.checkpoint_bytes(parameters) + weights


def _output_bytes(workspace: Workspace, stage: Stage) -> int:
    if stage.kind == "label":
        settings = workspace.config.of_variant(stage.variant)
        targets = int(workspace.data.lengths(settings.data).targets)
        return label_bytes(settings.distill, targets, workspace.data.vocab_size)
    return model_bytes(stage.kind, _parameters(workspace, stage))


def model_bytes(kind: str, parameters: int) -> int:
    """Bytes of the model that a stage of this kind writes, in the work directory and in MLflow's store."""
    copies = 2 if kind == "distill" else 1  # MLflow's store gets a copy of each student
    return copies * 4 * parameters


def label_bytes(distill: DistillConfig, targets: int, vocabulary_size: int) -> int:
    """Bytes of a student's cached soft labels, for at most ``targets`` target tokens per example."""
    facts = distill.labels.model_dump(by_alias=True) | {"examples": distill.num_labelled_examples}
    return labels_bytes(facts | {"targets": targets, "vocabulary": vocabulary_size})


def _written_bytes(workspace: Workspace, stage: Stage) -> int:
    """Bytes that an interrupted stage has already written."""
    directory: Path = stage.directory(workspace.directory)
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
