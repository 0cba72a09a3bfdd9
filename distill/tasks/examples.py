"""Batches of pairs of similar length. Which examples a batch has is a function of (seed, epoch) only.

B examples, S input tokens, T target tokens.
"""

from collections.abc import Sequence

import numpy as np
import torch

from distill.data.examples import IGNORE_INDEX, Batch
from distill.data.prepared_data import Lengths
from distill.tasks.prepared import Pairs, length_order

_ORDER = 3  # stream of random numbers, as in distill.data.examples
_POOL = 1024  # batches that are sorted by length together


class PairExamples:
    """Examples of a task, padded to the longest of their batch: inputs with ``pad``, labels with -100."""

    def __init__(self, pairs: Pairs, rows: np.ndarray, *, pad: int):
        """``rows`` [N] are the rows of ``pairs``, in the order of the examples."""
        self.pairs, self._rows, self._pad = pairs, rows, pad
        self.lengths = Lengths(
            int(pairs.input_lengths[rows].max(initial=1)), int(pairs.target_lengths[rows].max(initial=1))
        )

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def target_tokens(self) -> np.ndarray:
        """Number of target tokens of each example, [N]."""
        return self.pairs.target_lengths[self._rows]

    def batch(self, indices: Sequence[int]) -> Batch:
        """The examples ``indices``, in this order."""
        rows = self._rows[list(indices)]
        pairs = self.pairs
        inputs = _padded(pairs.tokens, pairs.starts[rows], pairs.middles[rows], self._pad)
        labels = _padded(pairs.tokens, pairs.middles[rows], pairs.ends[rows], IGNORE_INDEX)
        return Batch(inputs, labels)

    def inputs(self) -> list[np.ndarray]:
        """The tokens of every input, in order."""
        pairs = self.pairs
        return [np.asarray(pairs.tokens[pairs.starts[row] : pairs.middles[row]], np.int64) for row in self._rows]


class TrainingPairs(PairExamples):
    """Training examples. Every ``batch_size`` examples from the start are a batch of similar lengths.

    An epoch has a new order, and a whole number of batches. So it leaves out a few examples, different ones each time.
    """

    def __init__(self, pairs: Pairs, *, pad: int, seed: int, batch_size: int, weights: Sequence[float] = (1.0,)):
        """Arrange the examples.

        Args:
            pairs: all training pairs.
            pad: token id.
            seed: of the order.
            batch_size: examples per optimizer step.
            weights: of each source, the times that an epoch contains each of its examples.
        """
        super().__init__(pairs, np.arange(len(pairs.starts)), pad=pad)
        self._seed, self._batch_size, self._weights = seed, batch_size, np.asarray(weights)
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)
        self._epoch_length = len(self._arrange(0))

    def __len__(self) -> int:
        """Number of examples in an epoch."""
        return self._epoch_length

    def batch(self, indices: Sequence[int]) -> Batch:
        """The examples ``indices``, in this order. They may exceed one epoch."""
        return super().batch([self._row(index) for index in indices])

    def _row(self, index: int) -> int:
        epoch, position = divmod(index, self._epoch_length)
        if epoch != self._epoch:
            self._order, self._epoch = self._arrange(epoch), epoch
        return int(self._order[position])

    def _arrange(self, epoch: int) -> np.ndarray:
        """The rows of an epoch, in order."""
        rng, size = np.random.default_rng((_ORDER, self._seed, epoch)), self._batch_size
        weight = self._weights[self.pairs.sources]
        times = (np.floor(weight) + (rng.random(len(weight)) < weight % 1)).astype(np.int64)
        rows = rng.permutation(np.repeat(np.arange(len(times)), times))
        length = int(round(float(weight.sum()))) // size * size
        # A task with fewer examples than a batch repeats them. Random counts of repeats vary a little between epochs.
        rows = np.resize(rows, max(length, size))
        pools = [rows[start : start + _POOL * size] for start in range(0, len(rows), _POOL * size)]
        inputs, targets = self.pairs.input_lengths, self.pairs.target_lengths
        ordered = np.concatenate([pool[length_order(inputs[pool], targets[pool], size)] for pool in pools])
        return ordered.reshape(-1, size)[rng.permutation(len(ordered) // size)].reshape(-1)


def _padded(tokens: np.ndarray, starts: np.ndarray, ends: np.ndarray, fill: int) -> torch.Tensor:
    """Slices of ``tokens`` as rows of one tensor, [B, longest] int64, filled at the end."""
    lengths = ends - starts
    columns = np.arange(lengths.max())
    inside = columns < lengths[:, None]
    places = np.where(inside, starts[:, None] + columns, starts[:, None])
    return torch.from_numpy(np.where(inside, tokens[places].astype(np.int64), fill))
