"""The arrays of soft labels on disk: their types, shapes, sizes and files. Does not import torch."""

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np

from distill.special_tokens import token_type

_STORED_NAMES = {"token_ids": "words"}  # field of SparseSoftLabels -> name of the file, if it differs
PADDING = {"token_ids": 0, "probs": 0, "entropy": -1}  # the values at padding; no entropy is negative


def layout_of(facts: dict[str, Any]) -> dict[str, tuple[type, tuple[int, ...]]]:
    """dtype and shape of each array, by field of SparseSoftLabels."""
    targets = (facts["examples"], facts["targets"])
    stored = (*targets, facts["words"])  # K; labels.json has num_tokens under this name
    layout = {"token_ids": (token_type(facts["vocabulary"]), stored), "entropy": (np.float16, targets)}
    return layout if facts["form"] == "sampled" else {**layout, "probs": (np.float16, stored)}


def path_of(directory: Path, name: str) -> Path:
    """The file of an array."""
    return directory / f"{_STORED_NAMES.get(name, name)}.npy"


def labels_bytes(facts: dict[str, Any]) -> int:
    """Size of the arrays in bytes; ``facts`` has the keys examples, targets, words, vocabulary and form."""
    return sum(np.dtype(kind).itemsize * math.prod(shape) for kind, shape in layout_of(facts).values())


def open_arrays(directory: Path, facts: dict[str, Any], mode: Literal["r", "r+"]) -> dict[str, np.memmap]:
    """The memory-mapped arrays, by field of SparseSoftLabels."""
    return {name: np.load(path_of(directory, name), mmap_mode=mode, allow_pickle=False) for name in layout_of(facts)}
