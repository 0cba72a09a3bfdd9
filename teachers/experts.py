"""The experts of a Switch layer, on tokens that are sorted by expert.

N tokens, D d_model, E experts, F d_ff; n tokens of one expert, rounded up; S slots, C capacity.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from distill.models.t5_forward import compute_dtype
from teachers.config import CAST_AT_ONCE

# Below this many multiply-adds per expert, one call per expert costs more than the products of empty slots.
_SMALL = 2**24
# The same for empty slots alone, if capacity is the largest load: one popular expert then makes many of them.
_SMALL_EMPTY = {torch.bfloat16: 2**22, torch.float32: 2**19}
Inner = Callable[..., torch.Tensor]  # outputs of wi, and of wi_gate if there is one -> input of wo


class Routing(NamedTuple):
    """The expert of each token, and the tokens sorted by expert and, for equal experts, by position."""

    expert: torch.Tensor  # [N] int64; E for tokens without an expert
    position: torch.Tensor  # [N], number of earlier tokens with the same expert
    order: torch.Tensor  # [N], token indices in sorted order; tokens without an expert are last
    rank: torch.Tensor  # [N], the index of each token in ``order``
    load: torch.Tensor  # [E], tokens per expert


def sort_by_expert(expert_N: torch.Tensor, num_experts: int) -> Routing:
    """Sort tokens by expert. ``expert_N`` is int64 [N], with ``num_experts`` for tokens without an expert."""
    load = torch.zeros(num_experts + 1, dtype=torch.int64, device=expert_N.device)
    load.scatter_add_(0, expert_N, torch.ones_like(expert_N))
    order = expert_N.argsort(stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    starts = load.cumsum(0) - load
    return Routing(expert_N, rank - starts[expert_N], order, rank, load[:num_experts])


def run_experts(
    tokens_ND: torch.Tensor,
    routing: Routing,
    capacity: int | torch.Tensor | None,
    inner: Inner,
    wi: torch.Tensor,
    wi_gate: torch.Tensor | None,
    wo: torch.Tensor,
) -> torch.Tensor:
    """Run each token's expert on it.

    Args:
        tokens_ND: [N, D].
        routing: from ``sort_by_expert``.
        capacity: tokens per expert, a number or an int64 scalar; None if it is not limited.
        inner: activation and gating, element-wise.
        wi, wi_gate: [E, F, D]; ``wi_gate`` is None if the experts are not gated.
        wo: [E, D, F].

    Returns:
        [N, D], in the dtype of autocast if it is on, else that of ``tokens_ND``. Rows of tokens beyond capacity or
        without an expert are unspecified.
    """
    tokens_ND = tokens_ND.to(compute_dtype(tokens_ND))
    cast_later = wi.dtype != tokens_ND.dtype and wi.numel() > CAST_AT_ONCE and not torch.is_grad_enabled()
    if not cast_later:
        wi, wo = wi.to(tokens_ND.dtype), wo.to(tokens_ND.dtype)
        wi_gate = None if wi_gate is None else wi_gate.to(tokens_ND.dtype)
    groups = tokens_ND.is_cuda and tokens_ND.dtype == torch.bfloat16 and _rows_are_aligned(wi)
    if groups and not cast_later and len(tokens_ND):
        return _grouped(tokens_ND, routing, inner, wi, wi_gate, wo)
    if capacity is None:
        largest = max(map(int, [1, *routing.load.tolist()]))
        capacity = -(-largest // 4) * 4  # a CPU needs a kernel per shape
        empty, calls = len(wi) * capacity - len(tokens_ND), min(len(wi), len(tokens_ND))
        small = empty * wi.shape[1:].numel() < calls * _SMALL_EMPTY.get(tokens_ND.dtype, 0)
    else:
        capacity = int(capacity)
        small = capacity * wi.shape[1:].numel() < _SMALL
    if small and not cast_later:
        return _slotted(tokens_ND, routing, capacity, inner, wi, wi_gate, wo)
    loads = routing.load.tolist()
    wants = torch.is_grad_enabled()
    return _SlicedExperts.apply(tokens_ND, routing, _slices(loads, capacity), inner, wants, wi, wi_gate, wo)


def _slotted(
    tokens_ND: torch.Tensor,
    routing: Routing,
    capacity: int,
    inner: Inner,
    wi: torch.Tensor,
    wi_gate: torch.Tensor | None,
    wo: torch.Tensor,
) -> torch.Tensor:
    """One batched product over ``capacity`` slots per expert; all other tokens share one more slot."""
    experts, slots = len(wi), len(wi) * capacity
    taken_N = (routing.position < capacity) & (routing.expert < experts)
    slot_N = (routing.expert * capacity + routing.position).where(taken_N, slots)
    slots_SD = tokens_ND.new_zeros(slots + 1, tokens_ND.shape[1]).index_copy(0, slot_N, tokens_ND)
    slots_ECD = slots_SD[:-1].view(experts, capacity, -1)
    parts = [torch.bmm(slots_ECD, weight.mT) for weight in (wi, wi_gate) if weight is not None]
    output_SD = torch.bmm(inner(*parts), wo.mT).flatten(0, 1)
    return F.pad(output_SD, (0, 0, 0, 1)).index_select(0, slot_N)


def _rows_are_aligned(wi: torch.Tensor) -> bool:
    """Whether rows of length D and F have a multiple of 16 bytes, which ``F.grouped_mm`` requires."""
    return all(size * wi.element_size() % 16 == 0 for size in wi.shape[1:])


def _grouped(
    tokens_ND: torch.Tensor,
    routing: Routing,
    inner: Inner,
    wi: torch.Tensor,
    wi_gate: torch.Tensor | None,
    wo: torch.Tensor,
) -> torch.Tensor:
    """One grouped product for all experts, without synchronisation. It also computes tokens that are dropped later."""
    ends = routing.load.cumsum(0).to(torch.int32)
    ends[-1] = len(tokens_ND)  # without this, rows of tokens without an expert would be uninitialised
    sorted_ND = tokens_ND[routing.order]
    parts = [F.grouped_mm(sorted_ND, weight.mT, offs=ends) for weight in (wi, wi_gate) if weight is not None]
    return F.grouped_mm(inner(*parts), wo.mT, offs=ends)[routing.rank]


class _Slice(NamedTuple):
    """The tokens of one expert in sorted order; its products have ``rounded`` rows."""

    expert: int
    start: int
    length: int
    rounded: int


def _slices(loads: list[int], capacity: int) -> list[_Slice]:
    """The slices of all experts, rounded up to 8 or 16 sizes per power of two: a CPU needs a kernel per shape."""
    slices, start = [], 0
    for expert, load in enumerate(loads):
        if count := min(load, capacity):
            step = max(8, 1 << max(count.bit_length() - 5, 0))
            slices.append(_Slice(expert, start, count, -(-count // step) * step))
        start += load
    return slices


class _SlicedExperts(torch.autograd.Function):
    """Run one expert at a time, transposed: ``wo @ inner(wi @ x.T)``.

    On a CPU a matrix product reads its left operand in place and rearranges the right one first. With few tokens per
    expert the weights are much larger, so they are on the left. A rounded slice includes tokens of the next expert;
    their results are discarded and their gradients are zero.

    ``F.grouped_mm`` is about as fast on a CPU, but it requires rows of a multiple of 16 bytes, and computes tokens
    beyond capacity too.
    """

    @staticmethod
    def forward(
        ctx: Any,
        tokens_ND: torch.Tensor,
        routing: Routing,
        slices: list[_Slice],
        inner: Inner,
        wants_gradient: bool,
        wi: torch.Tensor,
        wi_gate: torch.Tensor | None,
        wo: torch.Tensor,
    ) -> torch.Tensor:
        spare = max((part.start + part.rounded for part in slices), default=0) - len(tokens_ND)
        sorted_ND = tokens_ND[F.pad(routing.order, (0, max(spare, 0)))]
        output_ND = torch.zeros_like(tokens_ND)
        saved = []
        for expert, start, count, rounded in slices:
            x_Dn = sorted_ND[start : start + rounded].mT
            pre = [torch.mm(weight[expert].to(x_Dn.dtype), x_Dn) for weight in (wi, wi_gate) if weight is not None]
            with torch.set_grad_enabled(wants_gradient):
                h_Fn = inner(*(part.requires_grad_(wants_gradient) for part in pre))
            output_ND[start : start + count] = torch.mm(wo[expert].to(h_Fn.dtype), h_Fn.detach())[:, :count].mT
            saved.append((pre, h_Fn) if wants_gradient else None)
        if wants_gradient:
            ctx.save_for_backward(sorted_ND, routing.order, routing.rank, wi, wi_gate, wo)
            ctx.slices, ctx.saved = slices, saved
        return output_ND[routing.rank]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_output_ND: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        sorted_ND, order, rank, wi, wi_gate, wo = ctx.saved_tensors
        d_sorted_ND = d_output_ND[order]
        d_tokens_ND = torch.zeros_like(d_sorted_ND)
        weights = [weight for weight in (wi, wi_gate) if weight is not None]
        d_weights, d_wo = [torch.empty_like(weight) for weight in weights], torch.empty_like(wo)
        for part, (pre, h_Fn) in zip(ctx.slices, ctx.saved, strict=True):
            expert, start, count, rounded = part
            d_y_nD = F.pad(d_sorted_ND[start : start + count], (0, 0, 0, rounded - count))
            torch.mm(d_y_nD.mT, h_Fn.detach().mT, out=d_wo[expert])
            d_pre = torch.autograd.grad(h_Fn, pre, torch.mm(wo[expert].mT, d_y_nD.mT))
            d_x_Dn = []  # through wi, and through wi_gate
            for weight, d_weight, d_part in zip(weights, d_weights, d_pre, strict=True):
                torch.mm(d_part, sorted_ND[start : start + rounded], out=d_weight[expert])
                d_x_Dn.append(torch.mm(weight[expert].mT, d_part))
            d_tokens_ND[start : start + count] = reduce(torch.add, d_x_Dn)[:, :count].mT
        ctx.saved = None
        idle = set(range(len(wo))) - {part.expert for part in ctx.slices}
        for gradient in (*d_weights, d_wo):
            for expert in idle:
                gradient[expert].zero_()
        d_wi, d_gate = d_weights if len(d_weights) == 2 else (*d_weights, None)
        return d_tokens_ND[rank], None, None, None, None, d_wi, d_gate, d_wo
