"""Operations of the fast forward pass of T5, each with a gradient that is written out.

B examples, S tokens, D d_model, H heads, L length.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def rms_norm(x: torch.Tensor, layer_norm: nn.Module, dtype: torch.dtype) -> torch.Tensor:
    """T5's normalisation, ``weight * x / sqrt(mean(x**2) + eps)``, computed in float32 and returned in ``dtype``."""
    return _RMSNorm.apply(x, layer_norm.weight, layer_norm.variance_epsilon, dtype)


def pack(dtype: torch.dtype, *weights: torch.Tensor) -> torch.Tensor:
    """Cast weights [n_i, D] to ``dtype`` and concatenate them to [sum n_i, D], in one pass."""
    return _Pack.apply(dtype, *weights)


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


class _Pack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: torch.Tensor) -> torch.Tensor:
        ctx.sizes = [len(weight) for weight in weights]
        packed = weights[0].new_empty(sum(ctx.sizes), weights[0].shape[1], dtype=dtype)
        for part, weight in zip(packed.split(ctx.sizes), weights, strict=True):
            part.copy_(weight)
        return packed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, *gradient.split(ctx.sizes)
