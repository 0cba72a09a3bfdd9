"""Ragged rows of ids to arrays and back. B rows, S the longest of them."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np


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


def cut(row: list[int], eos: int, most: int) -> list[int]:
    """An answer up to its ``eos``, which it keeps, and to at most ``most`` tokens."""
    row = row[:most]
    return row[: row.index(eos) + 1] if eos in row else row


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
