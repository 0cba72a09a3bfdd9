"""How much disk the stages of a run need: a function of their settings, known before one is computed, without torch."""

from pathlib import Path
from typing import TYPE_CHECKING

from distill.config import ModelConfig, TrainingConfig
from distill.disk import require_space, size
from distill.prepared_data import example_lengths
from pipelines.plan import baseline_training
from pipelines.stage import Stage, find_finished

if TYPE_CHECKING:
    from pipelines.run import Pipeline

_BUCKETS = 32  # of T5's relative positions
_CHECKPOINTS = 3  # two are kept while the next is written


def check_space(pipeline: "Pipeline", stages: list[Stage]) -> None:
    """Compare what the unfinished ones of ``stages`` will write with what is left.

    Models that are loaded, and students of their shape, are not counted: what they need is checked when their
    training starts.

    Raises:
        DiskFull: it is too little.
    """
    todo = [stage for stage in stages if not find_finished(stage, pipeline.workdir)]
    checkpoints = sorted(_checkpoint_bytes(pipeline, stage) for stage in todo)[-pipeline.config.jobs :]
    kept, there = sum(_kept_bytes(pipeline, stage) for stage in todo), sum(_there(pipeline, stage) for stage in todo)
    what = f"the rest of this run ({size(kept)} of models and labels, {size(sum(checkpoints))} of checkpoints)"
    if todo:
        require_space(pipeline.workdir, kept + sum(checkpoints) - there, what)


def parameters(model: ModelConfig, words: int, experts: int = 0) -> int:
    """Of a dense T5 of this shape, or of a Switch teacher with ``experts`` in each sparse layer; tied ones once."""
    ffn = (3 if model.feed_forward == "gated-gelu" else 2) * model.d_model * model.d_ff
    attention = 4 * model.d_model * model.num_heads * model.d_kv
    norms = 2 + 5 * model.num_layers  # one before each of 2 + 3 sublayers, and one at each end
    biases = 2 * _BUCKETS * model.num_heads
    embeddings = (1 if model.tie_word_embeddings else 2) * words * model.d_model
    dense = embeddings + biases + norms * model.d_model + model.num_layers * (3 * attention + 2 * ffn)
    sparse = 2 * (model.num_layers // model.sparse_every) if experts else 0
    return dense + sparse * (experts * (ffn + model.d_model) - ffn)


def _parameters(pipeline: "Pipeline", stage: Stage) -> int:
    """Of the model that a stage makes; 0 where it depends on one that is loaded."""
    config = pipeline.config
    if stage.kind in ("label", "report") or (config.teacher.checkpoints.get(stage.ratio or "")):
        return 0
    if stage.kind == "baseline" and config.teacher.checkpoints:
        return 0
    experts = config.teacher.ratios[stage.ratio] if stage.kind == "teacher" else 0
    return parameters(config.model, pipeline.data.vocab_size, experts)


def _training(pipeline: "Pipeline", stage: Stage) -> TrainingConfig | None:
    config = pipeline.config
    if stage.kind == "distill":
        return config.of_variant(stage.variant).distill.training
    return {"baseline": baseline_training(config), "teacher": config.teacher.training}.get(stage.kind)


def _checkpoint_bytes(pipeline: "Pipeline", stage: Stage) -> int:
    training = _training(pipeline, stage)
    if training is None:
        return 0
    # The baseline's trunk and its two ends each keep two.
    number = _CHECKPOINTS + 4 if stage.kind == "baseline" else _CHECKPOINTS
    return number * training.checkpoint_bytes(_parameters(pipeline, stage))


def _kept_bytes(pipeline: "Pipeline", stage: Stage) -> int:
    if stage.kind == "label":
        return _label_bytes(pipeline, stage)
    copies = 2 if stage.kind == "distill" else 1  # a student goes to MLflow's store too
    return copies * 4 * _parameters(pipeline, stage)


def _label_bytes(pipeline: "Pipeline", stage: Stage) -> int:
    from distill.cached_labels import labels_bytes

    settings = pipeline.config.of_variant(stage.variant)
    targets = example_lengths(pipeline.data, settings.data)[1].targets
    labels = settings.distill.labels.model_dump() | {"examples": settings.distill.labelled_examples}
    return labels_bytes({**labels, "targets": targets, "vocabulary": pipeline.data.vocab_size})


def _there(pipeline: "Pipeline", stage: Stage) -> int:
    """What an interrupted stage has written already."""
    directory: Path = stage.directory(pipeline.workdir)
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
