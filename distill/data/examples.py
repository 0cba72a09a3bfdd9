"""Fixed-length examples and batches of them. Example i is a function of (seed, i) only.

B examples, S input tokens, T target tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch

from distill.config import DataConfig
from distill.data.prepared_data import Lengths, PreparedText, example_lengths
from distill.span_corruption import corrupt_spans

IGNORE_INDEX = -100
_TRAIN, _HELD_OUT, _ORDER = 1, 2, 3  # separate streams of random numbers


class Batch(NamedTuple):
    """``input_ids`` [B, S] and ``labels`` [B, T], both int64; labels of -100 are ignored."""

    input_ids: torch.Tensor
    labels: torch.Tensor

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.input_ids.to(device, non_blocking=True), self.labels.to(device, non_blocking=True))


def checked_batch(values: Sequence[torch.Tensor]) -> Batch:
    """``values`` as a Batch; raises ValueError if their number, types or shapes do not fit."""
    found = [f"{getattr(one, 'dtype', type(one).__name__)} {list(getattr(one, 'shape', []))}" for one in values]
    if [text.partition(" [")[0] for text in found] == ["torch.int64"] * 2:
        inputs, labels = values
        if inputs.ndim == labels.ndim == 2 and len(inputs) == len(labels):
            return Batch(inputs, labels)
    raise ValueError(f"a batch is {found}; it must be input_ids [B, S] and labels [B, T], both torch.int64")


class ExampleSet(Protocol):
    """Examples of one split, of a corpus or of a task."""

    @property
    def lengths(self) -> Lengths:
        """The largest numbers of input and target tokens of an example."""

    @property
    def target_tokens(self) -> np.ndarray | None:
        """Number of target tokens of each example; None if all have the same number."""

    def __len__(self) -> int:
        """Number of examples, of training examples in an epoch."""

    def batch(self, indices: Sequence[int]) -> Batch:
        """The examples ``indices``, in this order. Those of training examples may exceed one epoch."""


class Examples:
    """The examples of one split of a corpus, made on demand.

    Each epoch of training examples has a new permutation of the segments and new spans. Evaluated examples are chosen
    evenly from the documents of ``config.eval_split``, and are the same for every model, seed and stage.
    """

    def __init__(self, data: PreparedText, config: DataConfig, *, seed: int | None):
        """``seed`` is that of training examples, or None for evaluated examples.

        Raises:
            UserError: see ``example_lengths``, and for evaluated examples ``PreparedData.layout``.
        """
        self.config, self.special_tokens, self.seed = config, data.special_tokens, seed
        self.raw_length = example_lengths(data, config)[0]
        self.lengths, self.target_tokens = data.lengths(config), None
        if seed is None:
            self._segments = data.evaluated(config).tokens
        else:
            number = data.parts["train"].tokens // self.raw_length
            self._segments = data.tokens("train")[: number * self.raw_length].reshape(number, self.raw_length)
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._segments)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The examples ``indices``, in this order. Training indices may exceed one epoch."""
        raw = self._segments[[self._segment(index) for index in indices]]
        stream = (_HELD_OUT, 0) if self.seed is None else (_TRAIN, self.seed)
        inputs, targets = corrupt_spans(
            raw,
            [np.random.default_rng((*stream, index)) for index in indices],
            noise_density=self.config.noise_density,
            mean_span_length=self.config.mean_span_length,
            sentinel_start=self.special_tokens.sentinel_start,
            eos=self.special_tokens.eos,
        )
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets))

    def _segment(self, index: int) -> int:
        if self.seed is None:
            return index
        epoch, position = divmod(index, len(self))
        if epoch != self._epoch:
            self._order = np.random.default_rng((_ORDER, self.seed, epoch)).permutation(len(self))
            self._epoch = epoch
        return self._order[position]
