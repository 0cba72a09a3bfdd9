"""Operations of the fast forward pass of T5, each with a gradient that is written out.

B examples, S tokens, D d_model, H heads, L length.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def rms_norm(x: torch.Tensor, layer_norm: nn.Module, dtype: torch.dtype) -> torch.Tensor:
    """T5's normalisation, ``weight * x / sqrt(mean(x**2) + eps)``, computed in float32 and returned in ``dtype``."""
    return _RMSNorm.apply(x, layer_norm.weight, layer_norm.variance_epsilon, dtype)


def linear(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
    """``F.linear`` of x [..., D] with the rows of all weights [n_i, D], in the dtype of x: [..., sum n_i].

    Only ``x`` and ``weights`` themselves are saved for the backward pass, which casts and concatenates the weights
    again. So an FSDP group that is freed after its forward pass leaves no copy of its weights behind.
    """
    return _Linear.apply(x, *weights)


def diagonals(x: torch.Tensor, length: int) -> torch.Tensor:
    """[H, 2L - 1] -> [H, L, L] with ``y[h, i, j] = x[h, j - i + L - 1]``: one value for each diagonal."""
    return _Diagonals.apply(x, length)


class _Diagonals(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, length: int) -> torch.Tensor:
        ctx.length = length
        return x.unfold(1, length, 1).flip(1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        length = ctx.length
        # Reading the padded rows of 2L as rows of 2L - 1 shifts each row by one place more: diagonals become columns.
        rows = F.pad(dy.float().flip(1), (0, length)).flatten(1)[:, : length * (2 * length - 1)]
        return rows.view(len(dy), length, 2 * length - 1).sum(1).to(dy.dtype), None


class _RMSNorm(torch.autograd.Function):
    """y = w * x * r with r = (mean(x**2) + eps)**-0.5, saving only x, w and r for the backward pass.

    ``F.rms_norm`` takes 1.5 to 3 times as long on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype) -> torch.Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        r = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, r)
        return (x * r).mul_(weight).to(dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, r = ctx.saved_tensors
        dy, unit = dy.float(), x * r
        product = dy * unit
        along = (product @ weight)[..., None].div_(x.shape[-1])  # projection of dy * weight on unit
        d_weight = product.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        return torch.mul(dy, weight, out=product).addcmul_(unit, along, value=-1).mul_(r), d_weight, None, None


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, *weights)
        return F.linear(x, _pack(x.dtype, weights))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        rows_x, rows_y = x.flatten(0, -2), dy.flatten(0, -2)
        d_x = torch.mm(rows_y, _pack(x.dtype, weights)).view_as(x) if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[1:]):
            return d_x, *(None for _ in weights)
        parts = torch.mm(rows_y.mT, rows_x).split([len(weight) for weight in weights])
        return d_x, *(part.to(weight.dtype) for part, weight in zip(parts, weights, strict=True))


def _pack(dtype: torch.dtype, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Cast weights [n_i, D] to ``dtype`` and concatenate them to [sum n_i, D], in one pass."""
    if len(weights) == 1:
        return weights[0].to(dtype)
    sizes = [len(weight) for weight in weights]
    packed = weights[0].new_empty(sum(sizes), weights[0].shape[1], dtype=dtype)
    for part, weight in zip(packed.split(sizes), weights, strict=True):
        part.copy_(weight)
    return packed
