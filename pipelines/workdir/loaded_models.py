"""Checks of the models that a run loads, before anything is written: whether they load, and can be compared.

Imports torch only after the checks of configs, tokenizers and values of weights.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from distill.data.prepared_data import PreparedData
from distill.data.vocabulary import Vocabulary, check_same_vocabulary, read_vocabulary
from distill.errors import UserError
from distill.models.directory import cached_weights, check_weights
from distill.models.header import Header, differences, shape_of
from distill.special_tokens import embedding_rows
from pipelines.config.run_config import RunConfig
from pipelines.workdir.stage import Stage
from students.check import check_dense
from teachers.check import check_teacher


class LoadedModel(NamedTuple):
    """A model that the config names."""

    description: str  # its name in messages
    source: str
    ratio: str | None  # of a teacher; None for the baseline
    header: Header
    vocabulary: Vocabulary | None  # of the model's own tokenizer; None if it has none


def check_models(
    config: RunConfig, stages: Iterable[Stage] | None = None, say: Callable[[str], None] = lambda text: None
) -> list[LoadedModel]:
    """Read the models that the config loads, and compare their headers and tokenizers.

    Args:
        stages: the stages that have not run. Weights are read only for a model that one of these stages loads; if
            ``stages`` is empty, nothing is read. None: no stage has run.
        say: is called with a sentence for each entry of a teacher's config.json that its tensors contradict.

    Raises:
        UserError: a model cannot be loaded, does not match its entry in the config, or cannot be compared with the
            others.
    """
    wanted = None if stages is None else {(stage.kind, stage.ratio) for stage in stages}
    if wanted is not None and not wanted:
        return []

    def unread(ratio: str | None) -> bool:
        return wanted is None or ("teacher" if ratio else "baseline", ratio) in wanted

    models = []
    if source := config.baseline.checkpoint:
        description = f"baseline.checkpoint {source!r}"
        header = check_dense(source, description, finite=unread(None))
        models.append(LoadedModel(description, source, None, header, None))
    for ratio, source in config.teacher.checkpoints.items():
        header = check_teacher(source, finite=unread(ratio))
        for sentence in header.differences:
            say(f"teacher {source!r}: {sentence}")
        if f"e{header.experts}" != ratio:
            raise UserError(
                f"teacher.checkpoints.{ratio} {source!r} has {header.experts} experts; name it e{header.experts}"
            )
        for one in config.students:
            decoder_layers = int(header.shape["num_decoder_layers"])
            one.student.check_sizes(int(header.shape["d_ff"]), decoder_layers, f"teacher {source!r}")
        models.append(LoadedModel(f"teacher {source!r}", source, ratio, header, None))
    models = [one._replace(vocabulary=read_vocabulary(one.source, one.description)) for one in models]
    _check_among_themselves(models)
    tokenizer = config.data.tokenizer
    known = read_vocabulary(tokenizer, f"tokenizer {tokenizer!r}") if models and tokenizer != "train" else None
    if known is not None:
        _check_vocabulary(config, models, known)
    _check_shapes(config, models, None if known is None else embedding_rows(len(known)))
    for model in models:
        if unread(model.ratio):
            _check_tensors(model)
    return models


def check_tokenizers(config: RunConfig, data: PreparedData, models: list[LoadedModel]) -> None:
    """Check that data and models have the same vocabulary and special tokens, and that the models can be compared.

    Raises:
        UserError: they differ, or a student's shape differs from the baseline's.
    """
    if models:
        _check_vocabulary(config, models, data.vocabulary)
        _check_shapes(config, models, data.vocab_size)
    for model in models:
        own = {"pad": model.header.pad, "eos": model.header.eos}
        found = {"pad": data.special_tokens.pad, "eos": data.special_tokens.eos}
        if differing := [name for name in own if own[name] != found[name]]:
            name = differing[0]
            raise UserError(
                f"{model.description} has {name}_token_id {own[name]} in its config.json, but the tokenizer has "
                f"{found[name]}; set data.tokenizer to the model's own, or correct the config.json"
            )


def _check_tensors(model: LoadedModel) -> None:
    """Check that transformers accepts the config of a model on this disk, and that the tensors fit to it."""
    if cached_weights(model.source, model.description) is None:
        return
    if model.ratio:
        from teachers.load import open_non_experts  # imports torch

        open_non_experts(model.source)
    elif tensors := check_weights(model.source, model.description, finite=False):
        from students.load import check_tensors  # imports torch

        check_tensors(model.source, tensors, model.description)


def _check_among_themselves(models: list[LoadedModel]) -> None:
    """Check that all models have the same vocabulary."""
    known = [(model.description, model.vocabulary) for model in models if model.vocabulary is not None]
    for description, vocabulary in known[1:]:
        first, first_vocabulary = known[0]
        hint = "compare models of one tokenizer"
        check_same_vocabulary(first_vocabulary, vocabulary, (first, description), hint)


def _check_vocabulary(config: RunConfig, models: list[LoadedModel], vocabulary: Vocabulary) -> None:
    """Compare the models with the vocabulary of the data."""
    for model in models:
        if (size := model.header.vocab_size) < len(vocabulary):
            raise UserError(
                f"{model.description} has a vocabulary of {size} tokens, but the tokenizer has {len(vocabulary)}; "
                "set data.tokenizer to the model's own"
            )
        if model.vocabulary is not None:
            names = (model.description, f"data.tokenizer {config.data.tokenizer!r}")
            check_same_vocabulary(model.vocabulary, vocabulary, names, f"set data.tokenizer to {model.source}")


def _check_shapes(config: RunConfig, models: list[LoadedModel], vocab_size: int | None) -> None:
    """Compare the students of all ratios with the baseline.

    Args:
        vocab_size: vocabulary size of the models that this run trains; None if it is not known yet.
    """
    if not models:
        return
    shapes = {model.ratio: model.header.shape for model in models}
    here = shape_of(config.model, vocab_size)
    # Without a checkpoint the baseline has the shape of the first loaded teacher's student.
    baseline = shapes.get(None) or shapes[next(iter(config.teacher.checkpoints))]
    for ratio in config.teacher.ratios:
        if differing := differences(shapes.get(ratio, here), baseline):
            raise UserError(
                f"student {ratio} and the baseline differ in {', '.join(differing)}; set baseline.checkpoint to "
                "a T5 of the student's shape, or compare teachers of one shape only"
            )
