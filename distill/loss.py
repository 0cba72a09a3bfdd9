"""The mixed loss of section 4.2: hard labels from the text, soft labels from the teacher.

N tokens, D d_model, V vocabulary.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

SoftLabels = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


class LossParts(NamedTuple):
    """The two terms before they are mixed, detached, under the same mask and reduction as the loss."""

    hard: torch.Tensor
    soft: torch.Tensor


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

    Section 4.2 and table 6 of the paper; the temperature and its square as in Hinton et al. 2015, equation 2,
    and Mesh TensorFlow's StudentTeacher. The soft term is a cross-entropy, not a KL divergence: it differs by
    the teacher's entropy (``soft_label_entropy``), which has no gradient for the student.

    Args:
        student_hidden: [N, D], scaled so that ``student_hidden @ student_head.T`` are the logits.
        student_head: [V, D].
        labels: [N] word ids, or ``ignore_index`` for tokens that neither term counts.
        soft_labels: the teacher's logits [N, V], or (hidden [N, D'], head [V, D']). May be None where
            ``hard_fraction`` is 1.
        hard_fraction: in [0, 1].
        temperature: above 0; divides student and teacher logits in the soft term.
        reduction: "mean" over the counted tokens, or "sum" for one denominator per optimizer step.

    Returns:
        The loss, a float32 scalar, and its parts (nats per token, or their sum).

    Raises:
        ValueError: soft labels are missing or of another vocabulary, or an argument is out of range.
    """
    _check(student_hidden, student_head, soft_labels, hard_fraction, temperature, reduction)
    counted = labels != ignore_index
    logits = F.linear(student_hidden, student_head).float()
    log_probs = logits.log_softmax(-1)
    picked = log_probs.gather(-1, labels.masked_fill(~counted, 0)[:, None])[:, 0]
    hard = -(picked * counted).sum()

    soft = hard.new_zeros(())
    if soft_labels is not None:
        teacher_probs = (_teacher_logits(soft_labels) / temperature).softmax(-1)
        student_log_probs = log_probs if temperature == 1 else (logits / temperature).log_softmax(-1)
        soft = -(temperature**2) * ((teacher_probs * student_log_probs).sum(-1) * counted).sum()

    if reduction == "mean":
        tokens = counted.sum().clamp(min=1)
        hard, soft = hard / tokens, soft / tokens
    loss = hard if hard_fraction == 1 else hard_fraction * hard + (1 - hard_fraction) * soft
    return loss, LossParts(hard.detach(), soft.detach())


@torch.no_grad()
def soft_label_entropy(
    soft_labels: SoftLabels, labels: torch.Tensor, *, temperature: float = 1.0, ignore_index: int = -100
) -> torch.Tensor:
    """Sum over the counted tokens of ``T^2`` times the entropy of the teacher's probabilities, in nats.

    The soft term (as a sum) minus this is ``T^2 * KL(teacher || student)``, which is 0 where they agree.
    """
    log_probs = (_teacher_logits(soft_labels) / temperature).log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    return temperature**2 * (entropy * (labels != ignore_index)).sum()


@torch.no_grad()
def _teacher_logits(soft_labels: SoftLabels) -> torch.Tensor:
    if isinstance(soft_labels, torch.Tensor):
        return soft_labels.float()
    hidden, head = soft_labels
    return F.linear(hidden, head).float()


def _check(
    hidden: torch.Tensor,
    head: torch.Tensor,
    soft_labels: SoftLabels | None,
    hard_fraction: float,
    temperature: float,
    reduction: str,
) -> None:
    if not 0 <= hard_fraction <= 1:
        raise ValueError(f"hard_fraction is {hard_fraction}; it must lie in [0, 1]")
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction is {reduction!r}; use 'mean' or 'sum'")
    if soft_labels is None:
        if hard_fraction < 1:
            raise ValueError(f"hard_fraction is {hard_fraction}, so soft_labels are needed")
        return
    rows, words = (
        tuple(soft_labels.shape)
        if isinstance(soft_labels, torch.Tensor)
        else (soft_labels[0].shape[0], soft_labels[1].shape[0])
    )
    if (rows, words) != (hidden.shape[0], head.shape[0]):
        raise ValueError(
            f"soft labels are for {rows} tokens and {words} words, the student's logits for "
            f"{hidden.shape[0]} tokens and {head.shape[0]} words"
        )
