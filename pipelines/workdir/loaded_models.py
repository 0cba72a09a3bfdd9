"""The models that a run loads, looked at before anything is written: whether they can be loaded, and be compared.

What the report would refuse in the end is refused here, and by the same function. Needs no torch.
"""

from collections.abc import Iterable
from typing import NamedTuple

from distill.data.prepared_data import PreparedData
from distill.data.vocabulary import Vocabulary, check_same_words, read_vocabulary
from distill.errors import UserError
from distill.models.header import Header, Shape, differences, shape_of
from distill.special_tokens import embedding_rows
from pipelines.config.run_config import RunConfig
from pipelines.workdir.stage import Stage
from students.check import check_dense
from teachers.check import check_teacher


class LoadedModel(NamedTuple):
    """A model that the config names."""

    what: str  # how messages name it
    source: str
    ratio: str | None  # of a teacher; None for the baseline
    header: Header
    vocabulary: Vocabulary | None  # of the tokenizer that it comes with


def check_models(config: RunConfig, stages: Iterable[Stage] | None = None) -> list[LoadedModel]:
    """Read what the config loads, and compare what their headers and tokenizers say.

    Args:
        stages: that have not run; the weights of a model that has been loaded already are not read again, and where
            all have run, nothing is. None: none has run.

    Raises:
        UserError: a model cannot be loaded, is not what the config calls it, or cannot be compared with the others.
    """
    wanted = None if stages is None else {(stage.kind, stage.ratio) for stage in stages}
    if wanted is not None and not wanted:
        return []
    models = []
    if source := config.baseline.checkpoint:
        what, unread = f"baseline.checkpoint {source!r}", wanted is None or ("baseline", None) in wanted
        models.append(LoadedModel(what, source, None, check_dense(source, what, finite=unread), None))
    for ratio, source in config.teacher.checkpoints.items():
        header = check_teacher(source, finite=wanted is None or ("teacher", ratio) in wanted)
        if f"e{header.experts}" != ratio:
            raise UserError(
                f"teacher.checkpoints.{ratio} {source!r} has {header.experts} experts; name it e{header.experts}"
            )
        models.append(LoadedModel(f"teacher {source!r}", source, ratio, header, None))
    models = [one._replace(vocabulary=read_vocabulary(one.source, one.what)) for one in models]
    _check_among_themselves(models)
    tokenizer = config.data.tokenizer
    words = read_vocabulary(tokenizer, f"tokenizer {tokenizer!r}") if models and tokenizer != "train" else None
    if words is not None:
        _check_words(config, models, words)
    _check_shapes(config, models, None if words is None else embedding_rows(len(words)))
    return models


def check_tokenizers(config: RunConfig, data: PreparedData, models: list[LoadedModel]) -> None:
    """Whether the words of the data are those of the models, and its vocabulary gives comparable ones.

    Raises:
        UserError: they are not.
    """
    if models:
        _check_words(config, models, data.vocabulary)
        _check_shapes(config, models, data.vocab_size)
    for model in models:
        own = {"pad": model.header.pad, "eos": model.header.eos}
        found = {"pad": data.words.pad, "eos": data.words.eos}
        if differing := [name for name in own if own[name] != found[name]]:
            name = differing[0]
            raise UserError(
                f"{model.what} has {name}_token_id {own[name]} in its config.json, the tokenizer has {found[name]}; "
                "set data.tokenizer to the model's own, or correct the config.json"
            )


def check_same_shape(ratio: str, student: Shape, baseline: Shape) -> None:
    """Whether the difference of a student and the baseline is that of their training alone.

    Raises:
        UserError: they are of different shapes.
    """
    if differing := differences(student, baseline):
        raise UserError(
            f"student {ratio} and the baseline differ in {', '.join(differing)}; set baseline.checkpoint to "
            "a T5 of the student's shape, or compare teachers of one shape only"
        )


def _check_among_themselves(models: list[LoadedModel]) -> None:
    """Whether there is a tokenizer that all of them can be given."""
    first, *others = [model for model in models if model.vocabulary is not None] or [None]
    for model in others:
        cure = "compare models of one tokenizer"
        check_same_words(first.vocabulary, model.vocabulary, (first.what, model.what), cure)


def _check_words(config: RunConfig, models: list[LoadedModel], words: Vocabulary) -> None:
    """Compare the models with the words of the data."""
    for model in models:
        if (size := model.header.shape["vocab_size"]) < len(words):
            raise UserError(
                f"{model.what} has {size} words, the tokenizer {len(words)}; set data.tokenizer to the model's own"
            )
        if model.vocabulary is not None:
            names = (model.what, f"data.tokenizer {config.data.tokenizer!r}")
            check_same_words(model.vocabulary, words, names, f"set data.tokenizer to {model.source}")


def _check_shapes(config: RunConfig, models: list[LoadedModel], vocab_size: int | None) -> None:
    """Compare the students of all ratios with the baseline.

    Args:
        vocab_size: of models that are trained here; None where it is not known yet.
    """
    if not models:
        return
    shapes = {model.ratio: model.header.shape for model in models}
    here = shape_of(config.model, vocab_size)
    # Without a checkpoint the baseline has the shape of the first loaded teacher's student.
    baseline = shapes.get(None) or shapes[next(iter(config.teacher.checkpoints))]
    for ratio in config.teacher.ratios:
        check_same_shape(ratio, shapes.get(ratio, here), baseline)
