"""A prepared task on disk: its facts, its tokens, and its evaluated examples. Does not import torch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from distill.config import DataConfig
from distill.data.held_out import even_shares
from distill.data.prepared_data import Lengths, PreparedData
from distill.errors import UserError
from distill.special_tokens import token_type

# A pair of a split: the positions after its input and after its target in the file of tokens; numbers that are equal
# for pairs of one document, and of equal texts; its group and its source.
PAIR = np.dtype(
    [("input", "<u8"), ("target", "<u8"), ("document", "<u8"), ("texts", "<u8"), ("group", "<u4"), ("source", "<u4")]
)
_SORTED = 64  # consecutive evaluated examples of similar length


class Pairs(NamedTuple):
    """Tokens of N pairs; input i is ``tokens[starts[i]:middles[i]]``, its target ``tokens[middles[i]:ends[i]]``."""

    tokens: np.ndarray  # one-dimensional
    starts: np.ndarray  # [N]
    middles: np.ndarray  # [N]
    ends: np.ndarray  # [N]
    sources: np.ndarray  # [N], index of the source of a mixture

    @property
    def input_lengths(self) -> np.ndarray:
        """[N]"""
        return self.middles - self.starts

    @property
    def target_lengths(self) -> np.ndarray:
        """[N]"""
        return self.ends - self.middles


class TaskExamples(NamedTuple):
    """The texts of the E evaluated examples, in the order of their losses, with their groups and documents."""

    inputs: list[str]
    references: list[str]  # the whole targets
    groups: list[str] | None
    documents: np.ndarray  # [E], number of the document that each example is from
    target_tokens: np.ndarray  # [E], tokens of the target that losses are means over
    columns: list[dict[str, str]]  # values of the columns of the row


@dataclass(frozen=True)
class PreparedPairs(PreparedData):
    """The pairs that ``distill.tasks.prepare`` has written to ``directory``."""

    task: dict[str, Any]  # groups, weights of the sources, lengths, truncated texts; see ``distill.tasks.prepare``

    def lengths(self, config: DataConfig) -> Lengths:
        """The longest input and target of the training pairs."""
        of = self.task["lengths"]["train"]
        return Lengths(of["inputs_longest"], of["targets_longest"])

    def mean_lengths(self, config: DataConfig) -> Lengths:
        """The mean lengths of the training pairs."""
        of = self.task["lengths"]["train"]
        return Lengths(of["inputs_mean"], of["targets_mean"])

    def num_training_examples(self, config: DataConfig) -> int:
        """Number of training pairs."""
        return int(self.task["lengths"]["train"]["examples"])

    def check_examples(self, config: DataConfig) -> None:
        """Nothing to check: ``data.test_examples`` is an upper limit for pairs."""

    def pairs(self, part: str) -> Pairs:
        """The tokens of a split, or of ``unlabelled`` inputs.

        Raises:
            UserError: a file is damaged.
        """
        index = self._index(part)
        ends = index["target"].astype(np.int64)
        starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
        tokens = np.memmap(
            Path(self.directory) / f"{part}.bin", dtype=token_type(self.special_tokens.vocabulary_size), mode="r"
        )
        return Pairs(tokens, starts, index["input"].astype(np.int64), ends, index["source"].astype(np.int64))

    def evaluated_rows(self, config: DataConfig) -> np.ndarray:
        """The rows of ``config.eval_split`` that models are evaluated on, at most ``config.test_examples``.

        Each group has the same number of examples, as far as it has enough. Within a group, a hash of the texts
        decides. Consecutive examples have similar lengths.
        """
        index = self._index(config.eval_split)
        order = np.lexsort((index["texts"], index["group"]))
        groups, counts = np.unique(index["group"], return_counts=True)
        taken = even_shares(counts, min(config.test_examples, len(index)))
        place = np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)
        chosen = order[place < np.repeat(taken, counts)]
        pairs = self.pairs(config.eval_split)
        chosen = chosen[np.argsort(index["texts"][chosen], kind="stable")]  # mixes the groups
        return chosen[length_order(pairs.input_lengths[chosen], pairs.target_lengths[chosen], _SORTED)]

    def evaluated_documents(self, config: DataConfig) -> np.ndarray:
        """Number of the document of each evaluated example, [E]."""
        rows = self.evaluated_rows(config)
        return np.unique(self._index(config.eval_split)["document"][rows], return_inverse=True)[1]

    def target_tokens(self, config: DataConfig) -> np.ndarray:
        """Number of target tokens of each evaluated example, [E]."""
        return self.pairs(config.eval_split).target_lengths[self.evaluated_rows(config)]

    def task_examples(self, config: DataConfig) -> TaskExamples:
        """The texts of the evaluated examples.

        Raises:
            UserError: a file is damaged.
        """
        rows, name = self.evaluated_rows(config), f"{config.eval_split}.jsonl"
        self._check({name})
        wanted = set(rows.tolist())
        with open(Path(self.directory) / name, "rb") as file:
            texts = {number: json.loads(line) for number, line in enumerate(file) if number in wanted}
        group = self._index(config.eval_split)["group"][rows]
        names = self.task["groups"]
        return TaskExamples(
            inputs=[texts[row]["input"] for row in rows.tolist()],
            references=[texts[row]["target"] for row in rows.tolist()],
            groups=[names[number] for number in group] if names else None,
            documents=self.evaluated_documents(config),
            target_tokens=self.target_tokens(config),
            columns=[texts[row]["columns"] for row in rows.tolist()],
        )

    def _index(self, part: str) -> np.ndarray:
        if part not in self.parts:
            raise UserError(f"{self.name} has no {part} split; set data.{part}_fraction")
        self._check({f"{part}.pairs", f"{part}.bin"})
        return np.fromfile(Path(self.directory) / f"{part}.pairs", PAIR)


def length_order(inputs: np.ndarray, targets: np.ndarray, size: int) -> np.ndarray:
    """An order in which every ``size`` examples have similar lengths, so that their batch has little padding.

    The examples are sorted by input length into about as many bands as each band has batches, and then by target
    length within a band. Equal lengths keep their order.

    Args:
        inputs, targets: numbers of tokens, [N].
        size: examples of a batch.
    """
    order = np.argsort(inputs, kind="stable")
    batches = -(-len(order) // size)
    band = np.arange(len(order)) // (max(round(batches**0.5), 1) * size)
    # Bands alternate in direction, so that a batch on the border of two bands has similar targets.
    signed = np.where(band % 2, -targets[order].astype(np.int64), targets[order].astype(np.int64))
    return order[np.lexsort((signed, band))]
