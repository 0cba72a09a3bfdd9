"""The batches of a step, without a GPU."""

from itertools import chain

import torch

from distill.data.cached_labels import LabelledBatch
from distill.loss_gradient import SparseSoftLabels
from distill.training.step import prefetch


class Numbered:
    """Examples whose tokens are their indices."""

    def batch(self, indices):
        ids = torch.tensor(indices)[:, None]
        return LabelledBatch(ids, ids + 100, SparseSoftLabels(ids + 200, ids / 2, ids[:, 0] / 4))


def test_batches_for_a_gpu_are_pinned_and_the_same(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self.clone())
    arguments = (Numbered(), lambda step: [range(2 * step, 2 * step + 2), range(9, 11)], range(1, 4))
    plain = [list(batches) for batches in prefetch(*arguments)]
    assert not pinned
    found = [list(batches) for batches in prefetch(*arguments, pin=True)]
    assert len(pinned) == 3 * 2 * 5  # steps, batches, tensors
    for ours, theirs in zip(chain(*found), chain(*plain), strict=True):
        assert type(ours) is LabelledBatch and type(ours.soft_labels) is SparseSoftLabels
        for one, other in zip([*ours[:2], *ours[2]], [*theirs[:2], *theirs[2]], strict=True):
            assert one is not other and torch.equal(one, other)
