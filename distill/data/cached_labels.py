"""Soft labels on disk: the teacher makes them once, and students of any seed and setting read them.

Example i of a training stream is a function of (seed, i), so i is the index of its labels. The arrays are memory-mapped
and verified by their SHA-256. Reading a batch reads only its own rows.

B examples, T positions of targets, N = B x T, K token ids per position. An example with fewer than T targets ends with
padding.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from distill.data.examples import ExampleSet
from distill.data.label_arrays import PADDING, open_arrays
from distill.data.soft_labels import equal_shares
from distill.errors import UserError
from distill.io.files import check_digests, read_record
from distill.loss_gradient import SparseSoftLabels


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
