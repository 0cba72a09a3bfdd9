"""The loss between hidden states of student and teacher, layer by layer, in addition to the loss on logits.

Student and teacher have the same number of blocks and the same d_model, so no projection is needed.

B examples, L input or target tokens, D d_model.
"""

from collections.abc import Collection
from typing import NamedTuple

import torch

from distill.models.t5_forward import BlockStates


class Matching(NamedTuple):
    """The states to match, and the weight of their loss.

    ``kinds`` contains ``hidden`` (the hidden states after every block of encoder and decoder), ``ffn`` (the output of
    each FFN that replaces a Switch layer, compared with the output of that layer), or both. The losses are added.
    """

    kinds: Collection[str]
    weight: float  # of the matching loss; the loss of one target token has weight 1
    steps: int | None = None  # steps in which the weight falls linearly to zero; None: it is constant

    def weight_at(self, step: int) -> float:
        """The weight at optimizer step ``step``, counted from 0."""
        return self.weight * (1 if self.steps is None else max(1 - step / self.steps, 0))

    def loss(self, student: list[BlockStates], teacher: list[BlockStates]) -> torch.Tensor:
        """Relative squared error, a float32 scalar: 0 if the states are equal, 1 if the student's states are zero.

        The error of a layer is the mean squared error over the tokens, divided by the mean square of the teacher's
        states. The loss is the mean over layers. Padding does not count.
        """
        losses: dict[str, list[torch.Tensor]] = {kind: [] for kind in self.kinds}
        for own, target in zip(student, teacher, strict=True):
            if "hidden" in losses:
                losses["hidden"].append(_relative_error(own.hidden, target.hidden, target.mask))
            if "ffn" in losses and target.sparse:
                losses["ffn"].append(_relative_error(own.ffn, target.ffn, target.mask))
        return torch.stack([torch.stack(of_layers).mean() for of_layers in losses.values()]).sum()


def _relative_error(student_BLD: torch.Tensor, teacher_BLD: torch.Tensor, mask_BL: torch.Tensor | None) -> torch.Tensor:
    teacher_BLD = teacher_BLD.float()
    error_BL = (student_BLD.float() - teacher_BLD).square().sum(-1)
    scale_BL = teacher_BLD.square().sum(-1)
    if mask_BL is not None:
        error_BL, scale_BL = error_BL * mask_BL, scale_BL * mask_BL
    return error_BL.sum() / scale_BL.sum()
