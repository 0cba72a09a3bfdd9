"""Muon for the matrices inside the blocks, and Adafactor for all other parameters.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) moves a matrix by the orthogonal matrix nearest to
its momentum, so that all directions move at the same rate. The computation is that of ``torch.optim.Muon``, with the
step sizes of Liu et al. 2025 (arXiv:2502.16982). On small models torch's implementation takes 3 to 10 times as long,
because it updates one matrix at a time, and it does not accept a tensor of several matrices. This one updates matrices
of equal shape together, such as the experts of a layer.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from distill.optim.adafactor import Adafactor, stack

_MOMENTUM = 0.95
_ITERATIONS = 5
# Coefficients of a polynomial whose iteration moves all but the smallest singular values to between 0.7 and 1.2.
_A, _B, _C = 3.4445, -4.7750, 2.0315


class Muon(Adafactor):
    """Muon for groups with ``orthogonal`` true, whose parameters are [..., M, N]; Adafactor for all other groups.

    Args:
        params: parameter groups.
        lr: learning rate, at least 0. The root mean square of a Muon update is about 0.2 * ``lr``; that of an Adafactor
            update is ``lr`` times the root mean square of the tensor.
        weight_decay: decoupled; multiplied by ``lr``.
        dtype: of the matrix products. bfloat16 is precise enough, but its rounding depends on the order in which
            gradients were summed.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, *, weight_decay: float = 0.0, dtype: torch.dtype = torch.bfloat16
    ):
        groups = [{"orthogonal": False, **group} for group in params]
        super().__init__(groups, lr, weight_decay=weight_decay)
        self.dtype = dtype
        for group in self.param_groups:
            for parameter in group["params"] if group["orthogonal"] else ():
                self.state[parameter] = {"step": torch.tensor(0.0), "momentum_buffer": torch.zeros_like(parameter)}

    def _update(self, parameters: list[torch.Tensor], group: dict[str, Any], step: int) -> None:
        if not group["orthogonal"]:
            super()._update(parameters, group, step)
            return
        values = stack(parameters)
        gradients = stack([parameter.grad for parameter in parameters if parameter.grad is not None])
        momentum = self._moment("momentum_buffer", parameters, gradients, 1 - _MOMENTUM)
        direction = _on_matrices(partial(orthogonal, dtype=self.dtype), gradients.lerp(momentum, _MOMENTUM))
        values.mul_(1 - group["lr"] * group["weight_decay"])
        values.sub_(direction.to(values.dtype), alpha=group["lr"] * 0.2 * max(values.shape[-2:]) ** 0.5)
        self._keep(parameters, values, step)


def orthogonal(matrices: torch.Tensor, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Approximate ``U V^T`` of each matrix ``U S V^T`` by Newton-Schulz iterations; [..., M, N], in ``dtype``."""
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = (matrices if wide else matrices.mT).to(dtype)
    folded, x = x.shape, x.reshape(-1, *x.shape[-2:])
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    x = x.reshape(folded)
    return x if wide else x.mT


def _on_matrices(function: Callable[[torch.Tensor], torch.Tensor], value: torch.Tensor) -> torch.Tensor:
    """Apply ``function`` to matrices [..., M, N]; the result of a DTensor is sharded like the argument.

    A process with a share of whole matrices computes these, and one with a part of each computes all of them.
    """
    if not isinstance(value, DTensor):
        return function(value)
    mesh, placements = value.device_mesh, value.placements
    if all(value.ndim - placement.dim > 2 for placement in placements if isinstance(placement, Shard)):
        own, (shape, stride) = function(value.to_local()).contiguous(), (value.shape, value.stride())
        return DTensor.from_local(own, mesh, placements, run_check=False, shape=shape, stride=stride)
    return distribute_tensor(function(value.full_tensor()), mesh, placements, src_data_rank=None)
