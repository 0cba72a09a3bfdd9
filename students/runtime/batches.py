"""Padding of token ids, and the answers of a batch. B rows, S tokens of the longest row, V vocabulary size."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from students.runtime import OnToken


class SpecialIds(NamedTuple):
    """The token ids that decoding needs."""

    start: int
    pad: int
    eos: int


def special_ids(directory: Path) -> SpecialIds:
    """Read the special ids from ``config.json`` of an export."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return SpecialIds(config["decoder_start_token_id"], config["pad_token_id"], config["eos_token_id"])


def pad(rows: list[list[int]], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Pad rows of different lengths -> ids [B, S], mask [B, S] (1 for tokens, 0 for padding); both int64."""
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max())[None] < lengths[:, None]
    ids = np.full(mask.shape, pad_id, dtype=np.int64)
    ids[mask] = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
    return ids, mask.astype(np.int64)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-softmax of ``logits`` [..., V] over the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


class Answers:
    """The answers of a batch while they are generated.

    An answer ends with ``eos``, at its largest length, or when ``on_token`` returns True.

    Attributes:
        rows: the token ids of each answer so far.
        unfinished: [B] bool, the answers that have not ended.
    """

    def __init__(self, max_tokens: list[int], eos: int, on_token: OnToken | None = None):
        self.rows: list[list[int]] = [[] for _ in max_tokens]
        self.unfinished = np.ones(len(max_tokens), dtype=bool)
        self._max_tokens, self._eos, self._on_token = max_tokens, eos, on_token

    def add(self, row: int, id_: int) -> bool:
        """Add the next token of an answer, unless it has ended. Returns whether the answer continues."""
        if self.unfinished[row]:
            self.rows[row].append(id_)
            stopped = self._on_token is not None and self._on_token(row, id_)
            ended = stopped or id_ == self._eos or len(self.rows[row]) == self._max_tokens[row]
            self.unfinished[row] = not ended
        return bool(self.unfinished[row])

    def add_step(self, ids: list[int]) -> None:
        """Add the next token of each answer; ``ids`` is [B]."""
        for row, id_ in enumerate(ids):
            self.add(row, id_)
