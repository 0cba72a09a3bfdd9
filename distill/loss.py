"""The mixed loss of section 4.2: hard labels from the text, soft labels from the teacher.

The loss is computed in chunks of tokens from hidden states and head. Only one chunk of the student's and the teacher's
logits is in memory at a time. The same pass computes the gradient, which has a closed form.

``F.linear_cross_entropy`` cannot mix two targets. For hard labels in bfloat16 it takes at least twice as long on a CPU.

N tokens, D d_model, V vocabulary size, K token ids per target token of sparse soft labels; n tokens of a tile.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from distill.arguments import require, require_positive

_CHUNK = 2**25  # logits in memory at a time: large enough for full-speed products
_CPU_TILE = 2**19  # logits per element-wise pass: small enough for the cache of a core


class SparseSoftLabels(NamedTuple):
    """A teacher's probabilities of K tokens for each target token. All other tokens share the remaining probability."""

    token_ids: torch.Tensor  # [N, K] int64; ids may repeat if the K probabilities add up to 1
    probs: torch.Tensor  # [N, K]
    entropy: torch.Tensor  # [N], nats, of the distribution that the labels represent; only for reporting


SoftLabels = torch.Tensor | tuple[torch.Tensor, torch.Tensor] | SparseSoftLabels
# Cross-entropy [n], entropy [n], keep, ids [n, K], target. The gradient is keep * q_T - target (at the ids, if any).
Target = tuple[torch.Tensor, torch.Tensor, torch.Tensor | float, torch.Tensor | None, torch.Tensor]


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
    temperature: float = 1.0,
    ignore_index: int = -100,
) -> LossSums:
    """``mixed_cross_entropy`` with reduction "sum" (the same errors too), and the soft labels' entropy."""
    require("hard_fraction", hard_fraction, "a number from 0 to 1", lambda fraction: 0 <= fraction <= 1)
    require_positive(temperature=temperature)
    _check_shapes(student_hidden, student_head, labels)
    if soft_labels is not None:
        _check_soft_labels(soft_labels, len(labels), len(student_head))
    elif hard_fraction < 1:
        raise ValueError(f"hard_fraction is {hard_fraction}, so soft_labels are needed")
    with torch.autocast(student_hidden.device.type, enabled=False):
        settings = (hard_fraction, temperature, ignore_index, torch.is_grad_enabled())
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
        hard_fraction: float,
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
        sums = hidden_ND.new_zeros(3, dtype=torch.float32)
        for rows in _slices(len(labels_N), max(_CHUNK // len(head), 1)):
            logits = F.linear(hidden_ND[rows], head)
            teacher = _rows(soft, rows)
            per_tile = max(_CPU_TILE // len(head), 1) if logits.device.type == "cpu" else len(logits)
            for tile in _slices(len(logits), per_tile):
                here = slice(rows.start + tile.start, rows.start + tile.stop)
                sums += _tile(
                    logits[tile], labels_N[here], counted_N[here], _rows(teacher, tile), hard_fraction, temperature
                )
            if d_hidden is not None:
                d_hidden[rows] = logits @ head  # _tile has replaced the logits with their gradient
            if want_head:
                product = (logits.mT @ hidden_ND[rows]).to(head_VD.dtype)  # adding mixed types takes far longer
                d_head = product if d_head is None else d_head.add_(product)
        ctx.gradients = d_hidden, d_head
        hard, soft_sum, entropy = sums.unbind()
        loss = hard if hard_fraction == 1 else hard_fraction * hard + (1 - hard_fraction) * soft_sum
        ctx.mark_non_differentiable(hard, soft_sum, entropy)
        return loss.clone(), hard, soft_sum, entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_loss: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        d_hidden, d_head = ctx.gradients
        ctx.gradients = None
        scaled = (None if gradient is None else gradient.mul_(d_loss) for gradient in (d_hidden, d_head))
        return *scaled, None, None, None, None, None, None


def _tile(
    logits_nV: torch.Tensor,
    labels_n: torch.Tensor,
    counted_n: torch.Tensor,
    soft: torch.Tensor | SparseSoftLabels | None,
    hard_fraction: float,
    temperature: float,
) -> torch.Tensor:
    """Sums of hard loss, soft loss and entropy [3] over a tile; replaces the logits with the gradient of the loss.

    Let q be the student's probabilities, q_T those at the temperature, and p_T the teacher's. The gradient is
    ``hard_fraction * (q - onehot) + (1 - hard_fraction) * T * (q_T - p_T)``.
    """
    scores, q, log_sum = _softmax(logits_nV)
    picked = labels_n[:, None]
    hard = ((log_sum - scores.gather(-1, picked)[:, 0]) * counted_n).sum()
    soft_sum = entropy = torch.zeros_like(hard)
    gradient = q
    if soft is not None:
        if temperature == 1:
            q_T, log_sum_T = q, log_sum
        else:
            scores, q_T, log_sum_T = _softmax(logits_nV, temperature)
        cross_n, entropy_n, keep_n, token_ids, target = (
            _sparse_target(scores, q_T, log_sum_T, soft, temperature)
            if isinstance(soft, SparseSoftLabels)
            else _dense_target(scores, q_T, log_sum_T, soft, temperature)
        )
        soft_weight = (1 - hard_fraction) * temperature
        if temperature != 1:
            gradient = q.mul_(hard_fraction).add_(q_T.mul_(soft_weight * keep_n))
        elif token_ids is not None:
            gradient = q.mul_(hard_fraction + soft_weight * keep_n)
        if token_ids is None:
            gradient.sub_(target, alpha=soft_weight)
        else:
            gradient.scatter_add_(-1, token_ids, target * -soft_weight)
        soft_sum = temperature**2 * (cross_n * counted_n).sum()
        entropy = temperature**2 * (entropy_n * counted_n).sum()
    one = gradient.new_full((1, 1), -hard_fraction if soft is not None else -1.0)
    gradient.scatter_add_(-1, picked, one.expand_as(picked))
    logits_nV.copy_(gradient.mul_(counted_n[:, None]))
    return torch.stack([hard, soft_sum, entropy])


def _softmax(logits: torch.Tensor, temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores minus their maximum, in float32; their softmax; log(sum(exp(scores))) without another exponential."""
    scores = logits.to(torch.float32, copy=True)
    if temperature != 1:
        scores /= temperature
    scores -= scores.amax(-1, keepdim=True)
    probs = scores.softmax(-1)
    return scores, probs, -probs.amax(-1).log()


def _dense_target(
    scores: torch.Tensor, q_T: torch.Tensor, log_sum_T: torch.Tensor, teacher_logits: torch.Tensor, temperature: float
) -> Target:
    """The target of a teacher's logits: the gradient is q_T minus the teacher's probabilities."""
    teacher_scores, p, teacher_log_sum = _softmax(teacher_logits, temperature)
    cross_n = log_sum_T - torch.linalg.vecdot(p, scores)
    return cross_n, teacher_log_sum - torch.linalg.vecdot(p, teacher_scores), 1.0, None, p


def _sparse_target(
    scores: torch.Tensor, q_T: torch.Tensor, log_sum_T: torch.Tensor, soft: SparseSoftLabels, temperature: float
) -> Target:
    """The target of sparse labels.

    All other tokens form one more class, of teacher probability r and student probability 1 - Q, where Q is the
    student's probability of the K ids. The gradient spreads r over these tokens in proportion to the student's q.
    """
    log_q_nK = scores.gather(-1, soft.token_ids) - log_sum_T[:, None]
    q_nK, p_nK = q_T.gather(-1, soft.token_ids), soft.probs.float()
    rest = (1 - p_nK.sum(-1, keepdim=True)).clamp(min=0)
    others = (1 - q_nK.sum(-1, keepdim=True)).clamp(min=1e-6)
    share = rest / others
    cross_n = -(p_nK * log_q_nK).sum(-1) - (rest * others.log())[:, 0]
    return cross_n, soft.entropy.float(), 1 - share, soft.token_ids, p_nK - share * q_nK


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
