"""A corpus that was split, cut into tokens and written to disk: what there is, and which examples it gives.

Needs no torch, and reads nothing before it is asked for.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from distill.config import DataConfig
from distill.data.held_out import EvaluatedExamples, Layout, choose_examples, make_layout
from distill.data.vocabulary import Vocabulary, read_vocabulary
from distill.errors import UserError
from distill.io.files import check_digests, read_record
from distill.span_corruption import SpanLengths, raw_length_for, span_lengths
from distill.special_tokens import SpecialTokens, embedding_rows, token_type

if TYPE_CHECKING:  # transformers takes seconds to import, and prepared data is reused without it
    from transformers import PreTrainedTokenizerFast

_NAMES = {"\n": "line breaks", "\t": "tabs", "\r": "carriage returns", " ": "spaces"}
LOST = ("skipped_rows", "unknown_share", "restored_share", "lost_share")  # the last three are those of RoundTrip
# A text of a part: the token after its last one, and what is the same for all texts of one document.
TEXT = np.dtype([("end", "<u8"), ("document", "<u8")])


@dataclass(frozen=True)
class Part:
    """``train``, ``test`` or ``validation``."""

    digest: str  # of its documents, in order
    documents: int
    tokens: int
    overlap: float | None = None  # share of a held-out part that also stands in the training part


class RoundTrip(NamedTuple):
    """How much of a text survives encoding and decoding; shares from 0 to 1."""

    unknown_share: float  # of all tokens, those that stand for what the tokenizer does not know
    restored_share: float  # of the sampled texts, those that decoding gives back exactly
    lost_share: float  # of the characters of the sampled texts, those that decoding does not give back
    most_lost: list[str]  # the characters that are lost most often, at most five
    sampled: int  # texts

    @property
    def summary(self) -> str:
        """The figures in words."""
        most = f", most often {', '.join(_NAMES.get(one, repr(one)) for one in self.most_lost)}" * bool(self.most_lost)
        return (
            f"{self.unknown_share:.1%} of the tokens are unknown words; decoding gives back {self.restored_share:.0%} "
            f"of {self.sampled:,} sampled texts exactly and loses {self.lost_share:.1%} of their characters{most}"
        )


@dataclass(frozen=True)
class PreparedData:
    """What ``distill.data.prepare.prepare_data`` left in ``directory``."""

    directory: str
    name: str
    digest: str  # of every document, in order
    fingerprint: str  # of everything that an example depends on: the documents, the split and the tokenizer
    parts: dict[str, Part]
    special_tokens: SpecialTokens
    round_trip: RoundTrip  # what the tokenizer loses
    skipped_rows: int  # bad ones, where data.bad_rows is skip
    first_skipped: str  # where the first of them stands, and what is wrong with it
    revision: str | None  # commit of a data set on the hub
    tokenizer_revision: str | None  # and of a tokenizer
    sha256: dict[str, str]  # of the files

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """Raises UserError where a file of it is not what was written."""
        from distill.data.tokenizer import load_tokenizer

        self._check_tokenizer()
        return load_tokenizer(Path(self.directory) / "tokenizer")

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokenizer's tokens and their ids; raises as ``tokenizer`` does, and needs no transformers."""
        self._check_tokenizer()
        return read_vocabulary(Path(self.directory) / "tokenizer", f"the tokenizer of {self.name}") or {}

    @property
    def lost(self) -> dict[str, float]:
        """What of the corpus is not in the data, under the names of LOST: a number of rows, and shares from 0 to 1."""
        return dict(zip(LOST, (self.skipped_rows, *self.round_trip[:3]), strict=True))

    @property
    def vocab_size(self) -> int:
        """Of a model that is made for this data: the tokenizer's vocabulary size, rounded up as T5 does."""
        return embedding_rows(self.special_tokens.vocabulary_size)

    def tokens(self, part: str) -> np.ndarray:
        """All token ids of ``train``, ``test`` or ``validation``, memory-mapped.

        Raises:
            UserError: they are not those that were written.
        """
        self._check({f"{part}.bin"})
        return np.memmap(
            Path(self.directory) / f"{part}.bin", dtype=token_type(self.special_tokens.vocabulary_size), mode="r"
        )

    def layout(self, config: DataConfig) -> Layout:
        """The documents that evaluated examples are cut from (``distill.data.held_out``).

        Raises:
            UserError: they are not those that were written, or are too few for ``config.test_examples``.
        """
        raw, _ = example_lengths(self, config)
        if (key := (config.eval_split, raw)) not in self._layouts:
            self._check({f"{config.eval_split}.documents"})
            texts = np.fromfile(Path(self.directory) / f"{config.eval_split}.documents", TEXT)
            self._layouts[key] = make_layout(texts["end"], texts["document"], raw)
        layout = self._layouts[key]
        if (available := int(layout.available.sum())) < config.test_examples:
            raise UserError(
                f"data.test_examples is {config.test_examples}, but the {config.eval_split} part of {self.name} "
                f"gives {available} of {raw} tokens; ask for fewer, or raise data.{config.eval_split}_fraction"
            )
        return layout

    def evaluated(self, config: DataConfig) -> EvaluatedExamples:
        """The raw examples that every model is evaluated on, and the document of each.

        Raises:
            UserError: see ``layout``.
        """
        return choose_examples(self.tokens(config.eval_split), self.layout(config), config.test_examples)

    def _check_tokenizer(self) -> None:
        self._check({name for name in self.sha256 if name.startswith("tokenizer/")})

    def _check(self, names: set[str]) -> None:
        """Read files once, when they are first needed: a finished pipeline is answered without."""
        directory = Path(self.directory)
        check_digests(directory, {name: self.sha256[name] for name in names - self._checked}, damage_hint(directory))
        self._checked.update(names)

    @cached_property
    def _checked(self) -> set[str]:
        return set()

    @cached_property
    def _layouts(self) -> dict[tuple[str, int], Layout]:
        return {}


def read_prepared(directory: Path) -> PreparedData:
    """What ``prepare_data`` left in ``directory``.

    Raises:
        UserError: its data.json is damaged.
    """
    values = read_record(directory / "data.json", damage_hint(directory))
    try:
        parts = {name: Part(**part) for name, part in values.pop("parts").items()}
        special_tokens, round_trip = SpecialTokens(*values.pop("special_tokens")), RoundTrip(**values.pop("round_trip"))
        return PreparedData(
            directory=str(directory), parts=parts, special_tokens=special_tokens, round_trip=round_trip, **values
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{directory / 'data.json'} is not what was written; {damage_hint(directory)}") from error


def example_lengths(data: PreparedData, config: DataConfig) -> tuple[int, SpanLengths]:
    """Raw tokens of an example, and what they are corrupted to.

    Raises:
        UserError: the data has too few training tokens, or its tokenizer too few sentinels, for such examples.
    """
    shape = {"noise_density": config.noise_density, "mean_span_length": config.mean_span_length}
    raw = raw_length_for(config.input_length, **shape)
    lengths = span_lengths(raw, **shape)
    if data.parts["train"].tokens < raw:
        raise UserError(
            f"the training part of {data.name} has {data.parts['train'].tokens} tokens, one example needs {raw}; "
            "use more text or a shorter data.input_length"
        )
    if lengths.spans > data.special_tokens.sentinels:
        raise UserError(
            f"an example of data.input_length {config.input_length} has {lengths.spans} spans, but the tokenizer "
            f"has {data.special_tokens.sentinels} sentinels; choose a shorter one"
        )
    return raw, lengths


def damage_hint(directory: Path) -> str:
    """What to do about data in ``directory`` that is damaged."""
    return f"delete {directory}, and the same command prepares the text again"
