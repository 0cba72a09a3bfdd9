"""What a student matches of its teacher besides the logits: states inside the two models, layer by layer.

Both have the same blocks and the same d_model, so that no projection has to stand between their states.

B examples, L input or target tokens, T target tokens, D d_model.
"""

from collections.abc import Collection
from typing import NamedTuple

import torch

from distill.data.examples import IGNORE_INDEX
from distill.models.t5_forward import BlockStates


class Matching(NamedTuple):
    """Which states are matched, and how much they count.

    ``kinds`` names ``hidden``, the hidden states after every block of encoder and decoder; ``ffn``, the output of each
    FFN that replaces a Switch layer against that layer's own; or both, whose losses are added.
    """

    kinds: Collection[str]
    weight: float  # of the states, where the loss of one target token has 1
    steps: int | None = None  # in which the weight falls linearly to zero; None: it is constant

    def weight_at(self, step: int) -> float:
        """The weight at optimizer step ``step``, from 0."""
        return self.weight * (1 if self.steps is None else max(1 - step / self.steps, 0))

    def loss(self, student: list[BlockStates], teacher: list[BlockStates], labels: torch.Tensor) -> torch.Tensor:
        """Relative squared error, a float32 scalar: 0 where states are equal, 1 where the student's are zero.

        For each layer it is the mean squared error over the tokens that count, divided by the mean square of the
        teacher's states; then the mean over layers. Decoder positions whose label [B, T] is -100 do not count.
        """
        counted_BT = labels != IGNORE_INDEX
        losses: dict[str, list[torch.Tensor]] = {kind: [] for kind in self.kinds}
        for own, target in zip(student, teacher, strict=True):
            mask = counted_BT if target.in_decoder else None
            if "hidden" in losses:
                losses["hidden"].append(_relative_error(own.hidden, target.hidden, mask))
            if "ffn" in losses and target.sparse:
                losses["ffn"].append(_relative_error(own.ffn, target.ffn, mask))
        return torch.stack([torch.stack(of_layers).mean() for of_layers in losses.values()]).sum()


def _relative_error(student_BLD: torch.Tensor, teacher_BLD: torch.Tensor, mask_BL: torch.Tensor | None) -> torch.Tensor:
    teacher_BLD = teacher_BLD.float()
    error_BL = (student_BLD.float() - teacher_BLD).square().sum(-1)
    scale_BL = teacher_BLD.square().sum(-1)
    if mask_BL is not None:
        error_BL, scale_BL = error_BL * mask_BL, scale_BL * mask_BL
    return error_BL.sum() / scale_BL.sum()
