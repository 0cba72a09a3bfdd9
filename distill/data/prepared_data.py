"""A prepared corpus on disk: its facts, its tokens, and its evaluated examples.

Files are read only when they are needed. Does not import torch.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from distill.config import DataConfig
from distill.data.held_out import EvaluatedExamples, Layout, choose_examples, make_layout
from distill.data.vocabulary import Vocabulary, read_vocabulary
from distill.errors import UserError
from distill.io.files import check_digests
from distill.span_corruption import SpanLengths, raw_length_for, span_lengths
from distill.special_tokens import SpecialTokens, embedding_rows, token_type

if TYPE_CHECKING:  # transformers takes seconds to import, and prepared data is reused without it
    from transformers import PreTrainedTokenizerFast

_NAMES = {"\n": "line breaks", "\t": "tabs", "\r": "carriage returns", " ": "spaces"}
LOST = ("skipped_rows", "unknown_share", "restored_share", "lost_share")  # the last three are fields of RoundTrip
# A text of a split: the position after its last token, and a number that is equal for all texts of its document.
TEXT = np.dtype([("end", "<u8"), ("document", "<u8")])


@dataclass(frozen=True)
class Part:
    """The facts of one split: ``train``, ``test`` or ``validation``."""

    digest: str  # of its documents, in order
    documents: int
    tokens: int
    overlap: float | None = None  # share of a held-out split that the training split contains
    unseen: float | None = None  # share of a held-out split's tokens whose id never occurs in the training split


class RoundTrip(NamedTuple):
    """The result of encoding and decoding texts; shares from 0 to 1."""

    unknown_share: float  # of all tokens: unknown tokens
    restored_share: float  # of the sampled texts: those that decoding restores exactly
    lost_share: float  # of the characters of the sampled texts: those that decoding does not restore
    most_lost: list[str]  # the characters that are lost most often, at most five
    sampled: int  # texts

    @property
    def summary(self) -> str:
        """The figures as a sentence."""
        most = f", most often {', '.join(_NAMES.get(one, repr(one)) for one in self.most_lost)}" * bool(self.most_lost)
        return (
            f"{self.unknown_share:.1%} of the tokens are unknown words; decoding restores {self.restored_share:.0%} "
            f"of {self.sampled:,} sampled texts exactly and loses {self.lost_share:.1%} of their characters{most}"
        )


class Lengths(NamedTuple):
    """Numbers of tokens of an example."""

    inputs: float
    targets: float


@dataclass(frozen=True)
class PreparedData(ABC):
    """Data that ``distill.data.prepare`` has written to ``directory``: a corpus, or the pairs of a task."""

    directory: str
    name: str
    digest: str  # of every document, in order
    fingerprint: str  # of all inputs of an example: the documents, the split and the tokenizer
    parts: dict[str, Part]
    special_tokens: SpecialTokens
    round_trip: RoundTrip  # the text that the tokenizer loses
    skipped_rows: int  # bad rows, if data.bad_rows is skip
    first_skipped: str  # place and problem of the first one
    revision: str | None  # commit of a data set on the hub
    tokenizer_revision: str | None  # commit of a tokenizer on the hub
    sha256: dict[str, str]  # by file name

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """The tokenizer; raises UserError if one of its files is damaged."""
        from distill.data.tokenizer import load_tokenizer

        self._check_tokenizer()
        return load_tokenizer(Path(self.directory) / "tokenizer")

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokenizer's tokens and their ids, read without transformers; raises UserError if a file is damaged."""
        self._check_tokenizer()
        return read_vocabulary(Path(self.directory) / "tokenizer", f"the tokenizer of {self.name}") or {}

    @property
    def lost(self) -> dict[str, float]:
        """The losses of the preparation, by the names in LOST: a number of rows, and shares from 0 to 1."""
        return dict(zip(LOST, (self.skipped_rows, *self.round_trip[:3]), strict=True))

    @property
    def vocab_size(self) -> int:
        """Vocabulary size of models for this data: that of the tokenizer, rounded up as in T5."""
        return embedding_rows(self.special_tokens.vocabulary_size)

    @abstractmethod
    def lengths(self, config: DataConfig) -> Lengths:
        """The largest numbers of input and target tokens of a training example."""

    @abstractmethod
    def mean_lengths(self, config: DataConfig) -> Lengths:
        """The mean numbers of input and target tokens of a training example."""

    @abstractmethod
    def num_training_examples(self, config: DataConfig) -> int:
        """Number of training examples in an epoch."""

    @abstractmethod
    def check_examples(self, config: DataConfig) -> None:
        """Raise UserError if there is too little data for the config."""

    @abstractmethod
    def evaluated_documents(self, config: DataConfig) -> np.ndarray:
        """Number of the document of each evaluated example, [E]."""

    @abstractmethod
    def target_tokens(self, config: DataConfig) -> np.ndarray | None:
        """Number of target tokens of each evaluated example, [E]; None if all have the same number."""

    def _check_tokenizer(self) -> None:
        self._check({name for name in self.sha256 if name.startswith("tokenizer/")})

    def _check(self, names: set[str]) -> None:
        """Verify each file once, when it is first needed. A finished run is reused without reading them."""
        directory = Path(self.directory)
        check_digests(directory, {name: self.sha256[name] for name in names - self._checked}, damage_hint(directory))
        self._checked.update(names)

    @cached_property
    def _checked(self) -> set[str]:
        return set()


@dataclass(frozen=True)
class PreparedText(PreparedData):
    """The corpus that ``distill.data.prepare.prepare_data`` has written to ``directory``."""

    def lengths(self, config: DataConfig) -> Lengths:
        """Input and target tokens after span corruption, equal for all examples."""
        _, spans = example_lengths(self, config)
        return Lengths(spans.inputs, spans.targets)

    def mean_lengths(self, config: DataConfig) -> Lengths:
        """The same as ``lengths``."""
        return self.lengths(config)

    def num_training_examples(self, config: DataConfig) -> int:
        """Number of training examples in an epoch."""
        return self.parts["train"].tokens // example_lengths(self, config)[0]

    def check_examples(self, config: DataConfig) -> None:
        """Raise UserError if there are too few training tokens or too few evaluated examples."""
        example_lengths(self, config)
        self.layout(config)

    def evaluated_documents(self, config: DataConfig) -> np.ndarray:
        """Number of the document of each evaluated example, [E]."""
        return self.evaluated(config).documents

    def target_tokens(self, config: DataConfig) -> None:
        """None: all examples have the same number of target tokens."""

    def tokens(self, part: str) -> np.ndarray:
        """All token ids of the split ``train``, ``test`` or ``validation``, [tokens], memory-mapped.

        Raises:
            UserError: the file is damaged.
        """
        self._check({f"{part}.bin"})
        return np.memmap(
            Path(self.directory) / f"{part}.bin", dtype=token_type(self.special_tokens.vocabulary_size), mode="r"
        )

    def layout(self, config: DataConfig) -> Layout:
        """The layout of the split that models are evaluated on (``distill.data.held_out``).

        Raises:
            UserError: the file is damaged, or the split has fewer examples than ``config.test_examples``.
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
                f"has {available} of {raw} tokens; lower it, or raise data.{config.eval_split}_fraction"
            )
        return layout

    def evaluated(self, config: DataConfig) -> EvaluatedExamples:
        """The raw tokens of the evaluated examples, which are the same for every model, and the document of each.

        Raises:
            UserError: see ``layout``.
        """
        return choose_examples(self.tokens(config.eval_split), self.layout(config), config.test_examples)

    @cached_property
    def _layouts(self) -> dict[tuple[str, int], Layout]:
        return {}


def example_lengths(data: PreparedText, config: DataConfig) -> tuple[int, SpanLengths]:
    """Raw tokens per example, and the lengths after corruption.

    Raises:
        UserError: the data has too few training tokens, or the tokenizer too few sentinels.
    """
    shape = {"noise_density": config.noise_density, "mean_span_length": config.mean_span_length}
    raw = raw_length_for(config.input_length, **shape)
    lengths = span_lengths(raw, **shape)
    if data.parts["train"].tokens < raw:
        raise UserError(
            f"the training part of {data.name} has {data.parts['train'].tokens} tokens, but one example needs {raw}; "
            "use more text or a shorter data.input_length"
        )
    if lengths.spans > data.special_tokens.sentinels:
        raise UserError(
            f"an example of data.input_length {config.input_length} has {lengths.spans} spans, but the tokenizer "
            f"has {data.special_tokens.sentinels} sentinels; choose a shorter data.input_length"
        )
    return raw, lengths


def damage_hint(directory: Path) -> str:
    """The end of a message about damaged data in ``directory``: the remedy."""
    return f"delete {directory} and run the same command again to prepare the text again"
