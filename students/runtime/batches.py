"""Ragged rows of ids to arrays and back, and the answers of a batch. B rows, S the longest of them."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from students.runtime import OnToken


class SpecialIds(NamedTuple):
    """The ids that decoding needs."""

    start: int
    pad: int
    eos: int


def special_ids(directory: Path) -> SpecialIds:
    """Read from ``config.json`` of an export."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return SpecialIds(config["decoder_start_token_id"], config["pad_token_id"], config["eos_token_id"])


def pad(rows: list[list[int]], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """-> ids [B, S] filled up with ``pad_id``, and mask [B, S], 1 where a row has a token; both int64."""
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max())[None] < lengths[:, None]
    ids = np.full(mask.shape, pad_id, dtype=np.int64)
    ids[mask] = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
    return ids, mask.astype(np.int64)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


class Answers:
    """The answers of a batch while they grow. Each ends with its ``eos``, at its length, or where ``on_token`` says so.

    ``rows`` holds their ids, and ``open`` [B] says which of them go on.
    """

    def __init__(self, max_tokens: list[int], eos: int, on_token: OnToken | None = None):
        self.rows: list[list[int]] = [[] for _ in max_tokens]
        self.open = np.ones(len(max_tokens), dtype=bool)
        self._max_tokens, self._eos, self._on_token = max_tokens, eos, on_token

    def add(self, row: int, id_: int) -> bool:
        """Take the next token of an answer; whether the answer goes on. What comes after its end is left out."""
        if self.open[row]:
            self.rows[row].append(id_)
            stopped = self._on_token is not None and self._on_token(row, id_)
            self.open[row] = not (stopped or id_ == self._eos or len(self.rows[row]) == self._max_tokens[row])
        return bool(self.open[row])

    def add_step(self, ids: list[int]) -> None:
        """Take the next token [B] of each answer."""
        for row, id_ in enumerate(ids):
            self.add(row, id_)
