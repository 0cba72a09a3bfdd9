"""Soft labels on disk: the teacher makes them once, and students of any seed and setting read them.

Example i of a training stream is a function of (seed, i), so i is the index of its labels. The arrays are memory-mapped
and verified by their SHA-256. Reading a batch reads only its own rows.

B examples, T positions of targets, N = B x T, K token ids per position. An example with fewer than T targets ends with
padding.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from distill.data.examples import ExampleSet
from distill.data.soft_labels import equal_shares
from distill.errors import UserError
from distill.io.files import check_digests, read_record
from distill.loss import SparseSoftLabels
from distill.special_tokens import token_type

_STORED_NAMES = {"token_ids": "words"}  # field of SparseSoftLabels -> name of the file, if it differs
PADDING = {"token_ids": 0, "probs": 0, "entropy": -1}  # the values at padding; no entropy is negative


class LabelledBatch(NamedTuple):
    """A ``distill.data.examples.Batch`` with soft labels for its N positions, in the order of the labels."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    soft_labels: SparseSoftLabels

    def to(self, device: torch.device) -> "LabelledBatch":
        soft_labels = SparseSoftLabels(*(part.to(device, non_blocking=True) for part in self.soft_labels))
        input_ids, labels = (part.to(device, non_blocking=True) for part in (self.input_ids, self.labels))
        return LabelledBatch(input_ids, labels, soft_labels)


class CachedLabels:
    """The memory-mapped labels in a directory of ``distill.data.make_labels``. ``facts`` is its labels.json."""

    def __init__(self, directory: Path):
        """Open the files, and read all of them once to verify their SHA-256.

        Raises:
            UserError: a file is missing or damaged.
        """
        hint = f"copy it again, or delete {directory.parent} and make the labels again with: switch-distill label"
        self.facts: dict[str, Any] = read_record(directory / "labels.json", hint)
        try:
            check_digests(directory, self.facts["sha256"], hint)
            self._arrays = open_arrays(directory, self.facts, "r")
        except (ValueError, KeyError) as error:
            raise UserError(f"the files in {directory} are not soft labels ({error}); {hint}") from error

    def __len__(self) -> int:
        """Number of labelled examples."""
        return self.facts["examples"]

    @property
    def bytes_per_token(self) -> int:
        """2K + 2 for ``sampled``, 4K + 2 for ``top_k``; 2K more if the vocabulary exceeds 65,536 tokens."""
        return sum(array.nbytes for array in self._arrays.values()) // self._arrays["entropy"].size

    def means(self) -> dict[str, float]:
        """Means over target tokens: ``entropy`` in nats; ``mass``, the probability of the K ids (1 if ``sampled``)."""
        entropy, probs = self._arrays["entropy"], self._arrays.get("probs")
        is_padding = entropy == PADDING["entropy"]
        tokens = 1 - float(is_padding.mean())  # share of the positions
        mass = 1.0 if probs is None else float(probs.mean(dtype=np.float64)) * probs.shape[-1] / tokens
        return {"entropy": float(np.where(is_padding, 0, entropy).mean(dtype=np.float64)) / tokens, "mass": mass}

    def batch(self, indices: Sequence[int], length: int | None = None) -> SparseSoftLabels:
        """The labels of examples ``indices`` (modulo their number): token_ids and probs [N, K], entropy [N].

        ``length`` is the number of positions T; None is that of the longest example.
        """
        rows = np.asarray(indices) % len(self)
        read = {name: torch.from_numpy(array[rows, :length]).flatten(0, 1) for name, array in self._arrays.items()}
        token_ids = read["token_ids"].long()
        probs = read["probs"].float() if "probs" in read else equal_shares(token_ids)
        return SparseSoftLabels(token_ids, probs, read["entropy"].float())


class LabelledExamples:
    """Training examples with their cached labels. After the last example, the first one follows again."""

    def __init__(self, examples: ExampleSet, labels: CachedLabels):
        """``examples`` must have the data, settings and seed that the labels were made with."""
        self.examples, self.labels = examples, labels

    def batch(self, indices: Sequence[int]) -> LabelledBatch:
        """Like ``ExampleSet.batch``, with soft labels."""
        rows = [index % len(self.labels) for index in indices]
        batch = self.examples.batch(rows)
        return LabelledBatch(*batch, self.labels.batch(rows, batch.labels.shape[1]))


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
    return sum(np.dtype(kind).itemsize * int(np.prod(shape)) for kind, shape in layout_of(facts).values())


def open_arrays(directory: Path, facts: dict[str, Any], mode: Literal["r", "r+"]) -> dict[str, np.memmap]:
    """The memory-mapped arrays, by field of SparseSoftLabels."""
    return {name: np.load(path_of(directory, name), mmap_mode=mode, allow_pickle=False) for name in layout_of(facts)}
