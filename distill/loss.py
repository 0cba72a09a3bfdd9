"""The mixed loss of section 4.2: hard labels from the text, soft labels from the teacher.

The loss is computed in chunks of tokens from hidden states and head. Only one chunk of the student's and the teacher's
logits is in memory at a time. The same pass computes the gradient (``distill.loss_gradient``).

``F.linear_cross_entropy`` cannot mix two targets. For hard labels in bfloat16 it takes at least twice as long on a CPU.

N tokens, D d_model, V vocabulary size.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from distill.arguments import require, require_positive
from distill.loss_gradient import SparseSoftLabels, loss_and_gradient

_CHUNK = 2**25  # logits in memory at a time: large enough for full-speed products
_CPU_TILE = 2**19  # logits per element-wise pass: small enough for the cache of a core

SoftLabels = torch.Tensor | tuple[torch.Tensor, torch.Tensor] | SparseSoftLabels


class LossParts(NamedTuple):
    """The two terms before they are mixed, detached, with the same mask and reduction as the loss."""

    hard: torch.Tensor
    soft: torch.Tensor


class LossSums(NamedTuple):
    """The mixed loss and its terms, each summed over the counted tokens; only ``loss`` has a gradient."""

    loss: torch.Tensor
    hard: torch.Tensor
    soft: torch.Tensor
    entropy: torch.Tensor  # of the soft labels, times T^2: ``soft - entropy`` is T^2 * KL(teacher || student)


def mixed_cross_entropy(
    student_hidden: torch.Tensor,
    student_head: torch.Tensor,
    labels: torch.Tensor,
    soft_labels: SoftLabels | None,
    *,
    hard_fraction: float = 0.75,
    by_token: bool = False,
    temperature: float = 1.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> tuple[torch.Tensor, LossParts]:
    """``hard_fraction * CE(labels) + (1 - hard_fraction) * T^2 * CE(teacher's probabilities at T)``.

    Section 4.2 and table 6 of the paper. The temperature and the factor T^2 follow Hinton et al. 2015, equation 2,
    and Mesh TensorFlow's StudentTeacher. The soft term is a cross-entropy, not a KL divergence. They differ by the
    teacher's entropy, which has no gradient with respect to the student.

    The products with the head have the dtype of ``student_hidden``; all other operations are in float32. Apart from
    the gradients, memory does not depend on N.

    Args:
        student_hidden: [N, D], scaled so that ``student_hidden @ student_head.T`` are the logits.
        student_head: [V, D], of any floating dtype.
        labels: [N] int64 token ids; both terms ignore tokens with ``ignore_index``.
        soft_labels: the teacher's logits [N, V], or (hidden [N, D'], head [V, D']), or ``SparseSoftLabels`` made at
            the same temperature. May be None if ``hard_fraction`` is 1.
        hard_fraction: in [0, 1].
        by_token: the weight of a token's soft label is the teacher's probability of its hard label (at the
            temperature), and the hard label has the rest. So the student learns the teacher's distribution where the
            teacher is right. ``hard_fraction`` is not used, unless it is 1.
        temperature: above 0; it divides the logits of student and teacher in the soft term.
        reduction: "mean" over the counted tokens, or "sum", which allows one denominator per optimizer step.

    Returns:
        The loss, a float32 scalar, and its parts (nats per token, or summed over tokens).

    Raises:
        ValueError: soft labels are missing or have another vocabulary size, or an argument has a wrong value or shape.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction is {reduction!r}; use 'mean' or 'sum'")
    sums = sum_of_losses(
        student_hidden,
        student_head,
        labels,
        soft_labels,
        hard_fraction=hard_fraction,
        by_token=by_token,
        temperature=temperature,
        ignore_index=ignore_index,
    )
    tokens = (labels != ignore_index).sum().clamp(min=1) if reduction == "mean" else 1
    return sums.loss / tokens, LossParts(sums.hard / tokens, sums.soft / tokens)


def sum_of_losses(
    student_hidden: torch.Tensor,
    student_head: torch.Tensor,
    labels: torch.Tensor,
    soft_labels: SoftLabels | None,
    *,
    hard_fraction: float,
    by_token: bool = False,
    temperature: float = 1.0,
    ignore_index: int = -100,
) -> LossSums:
    """``mixed_cross_entropy`` with reduction "sum" (the same errors too), and the soft labels' entropy."""
    require("hard_fraction", hard_fraction, "a number from 0 to 1", lambda fraction: 0 <= fraction <= 1)
    require("by_token", by_token, "True or False", lambda given: isinstance(given, bool))
    require_positive(temperature=temperature)
    _check_shapes(student_hidden, student_head, labels)
    if soft_labels is not None:
        _check_soft_labels(soft_labels, len(labels), len(student_head))
    elif hard_fraction < 1:
        raise ValueError(f"hard_fraction is {hard_fraction}, so soft_labels are needed")
    with torch.autocast(student_hidden.device.type, enabled=False):
        weight = None if by_token and hard_fraction < 1 else hard_fraction
        settings = (weight, temperature, ignore_index, torch.is_grad_enabled())
        return LossSums(*_ChunkedLoss.apply(student_hidden, student_head, labels, soft_labels, *settings))


class _ChunkedLoss(torch.autograd.Function):
    """Loss and gradients in one pass over the tokens; the backward pass only scales the gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        head_VD: torch.Tensor,
        labels_N: torch.Tensor,
        soft: SoftLabels | None,
        hard_weight: float | None,
        temperature: float,
        ignore_index: int,
        with_gradient: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        want_hidden, want_head = (with_gradient and wanted for wanted in ctx.needs_input_grad[:2])
        counted_N = labels_N != ignore_index
        labels_N = labels_N.masked_fill(~counted_N, 0)
        head = head_VD.to(hidden_ND.dtype)
        d_hidden = torch.empty_like(hidden_ND) if want_hidden else None
        d_head = None
        sums = hidden_ND.new_zeros(4, dtype=torch.float32)
        for rows in _slices(len(labels_N), max(_CHUNK // len(head), 1)):
            logits = F.linear(hidden_ND[rows], head)
            teacher = _rows(soft, rows)
            per_tile = max(_CPU_TILE // len(head), 1) if logits.device.type == "cpu" else len(logits)
            for tile in _slices(len(logits), per_tile):
                here = slice(rows.start + tile.start, rows.start + tile.stop)
                sums += loss_and_gradient(
                    logits[tile], labels_N[here], counted_N[here], _rows(teacher, tile), hard_weight, temperature
                )
            if d_hidden is not None:
                d_hidden[rows] = logits @ head  # loss_and_gradient has replaced the logits with their gradient
            if want_head:
                product = (logits.mT @ hidden_ND[rows]).to(head_VD.dtype)  # adding mixed types takes far longer
                d_head = product if d_head is None else d_head.add_(product)
        ctx.gradients = d_hidden, d_head
        loss, hard, soft_sum, entropy = sums.unbind()
        ctx.mark_non_differentiable(hard, soft_sum, entropy)
        return loss.clone(), hard, soft_sum, entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_loss: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        d_hidden, d_head = ctx.gradients
        ctx.gradients = None
        scaled = (None if gradient is None else gradient.mul_(d_loss) for gradient in (d_hidden, d_head))
        return *scaled, None, None, None, None, None, None


def _slices(total: int, size: int) -> list[slice]:
    """The fewest slices of at most ``size`` that cover ``total``, of nearly equal lengths."""
    parts = max(-(-total // size), 1)
    size = -(-total // parts)
    return [slice(start, min(start + size, total)) for start in range(0, total, max(size, 1))]


def _rows(soft: SoftLabels | None, rows: slice) -> torch.Tensor | SparseSoftLabels | None:
    """The soft labels of some tokens: logits, or sparse labels."""
    if soft is None or isinstance(soft, torch.Tensor):
        return None if soft is None else soft[rows]
    if isinstance(soft, SparseSoftLabels):
        return SparseSoftLabels(*(part[rows] for part in soft))
    hidden, head = soft
    return F.linear(hidden[rows], head.to(hidden.dtype))


def _check_shapes(hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor) -> None:
    shapes = f"{list(hidden.shape)}, {list(head.shape)} and {list(labels.shape)}"
    if hidden.ndim != 2 or head.shape[1:] != hidden.shape[1:] or labels.shape != hidden.shape[:1]:
        raise ValueError(
            f"student_hidden, student_head and labels have shapes {shapes}; "
            "they must be [tokens, d_model], [vocabulary, d_model] and [tokens]"
        )
    require("labels.dtype", labels.dtype, "torch.int64", lambda dtype: dtype == torch.int64)


def _check_soft_labels(soft_labels: SoftLabels, tokens: int, vocabulary_size: int) -> None:
    if isinstance(soft_labels, torch.Tensor) and soft_labels.ndim == 2:
        rows, size = soft_labels.shape
    elif isinstance(soft_labels, SparseSoftLabels):
        rows, size = len(soft_labels.token_ids), vocabulary_size
    elif isinstance(soft_labels, tuple) and [getattr(one, "ndim", 0) for one in soft_labels] == [2, 2]:
        rows, size = len(soft_labels[0]), len(soft_labels[1])
    else:
        raise ValueError(
            f"soft_labels are a {type(soft_labels).__name__}; "
            "give logits [tokens, vocabulary], (hidden, head) of the teacher, or SparseSoftLabels"
        )
    if (rows, size) != (tokens, vocabulary_size):
        raise ValueError(
            f"soft labels are for {rows} tokens and a vocabulary of {size}, the student's logits for "
            f"{tokens} tokens and a vocabulary of {vocabulary_size}"
        )
