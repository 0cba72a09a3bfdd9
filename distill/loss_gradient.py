"""The mixed loss of a tile of tokens and its gradient in closed form.

n tokens, V vocabulary size, K token ids per target token of sparse soft labels.
"""

from typing import NamedTuple

import torch


class SparseSoftLabels(NamedTuple):
    """A teacher's probabilities of K tokens for each target token. All other tokens share the remaining probability."""

    token_ids: torch.Tensor  # [N, K] int64; ids may repeat if the K probabilities add up to 1
    probs: torch.Tensor  # [N, K]
    entropy: torch.Tensor  # [N], nats, of the distribution that the labels represent; only for reporting


# Cross-entropy [n], entropy [n], keep, ids [n, K], target. The gradient is keep * q_T - target (at the ids, if any).
Target = tuple[torch.Tensor, torch.Tensor, torch.Tensor | float, torch.Tensor | None, torch.Tensor]


def loss_and_gradient(
    logits_nV: torch.Tensor,
    labels_n: torch.Tensor,
    counted_n: torch.Tensor,
    soft: torch.Tensor | SparseSoftLabels | None,
    hard_weight: float | None,
    temperature: float,
) -> torch.Tensor:
    """Sums of mixed, hard and soft loss and entropy [4] over a tile; replaces the logits with the loss's gradient.

    Let h be the weight of the hard labels, q the student's probabilities, q_T those at the temperature, and p_T the
    teacher's. The gradient is ``h * (q - onehot) + (1 - h) * T * (q_T - p_T)``. If ``hard_weight`` is None, h is
    1 minus the p_T of the hard label, for each token.
    """
    scores, q, log_sum = _softmax(logits_nV)
    picked = labels_n[:, None]
    hard_n = (log_sum - scores.gather(-1, picked)[:, 0]) * counted_n
    hard = loss = hard_n.sum()
    soft_sum = entropy = torch.zeros_like(hard)
    gradient = q
    h: torch.Tensor | float = 1.0  # the weight of the hard labels, [n, 1] if it differs between tokens
    if soft is not None:
        if temperature == 1:
            q_T, log_sum_T = q, log_sum
        else:
            scores, q_T, log_sum_T = _softmax(logits_nV, temperature)
        cross_n, entropy_n, keep_n, token_ids, target = (
            _sparse_target(scores, q_T, log_sum_T, soft)
            if isinstance(soft, SparseSoftLabels)
            else _dense_target(scores, log_sum_T, soft, temperature)
        )
        h = 1 - _probability_of(picked, soft, target) if hard_weight is None else hard_weight
        soft_weight = (1 - h) * temperature
        if temperature != 1:
            gradient = q.mul_(h).add_(q_T.mul_(soft_weight * keep_n))
        elif token_ids is not None:
            gradient = q.mul_(h + soft_weight * keep_n)
        if token_ids is None:
            gradient.sub_(target.mul_(soft_weight))
        else:
            gradient.scatter_add_(-1, token_ids, target * -soft_weight)
        soft_n = temperature**2 * cross_n * counted_n
        soft_sum, entropy = soft_n.sum(), temperature**2 * (entropy_n * counted_n).sum()
        loss = hard if hard_weight == 1 else (h * hard_n[:, None] + (1 - h) * soft_n[:, None]).sum()
    gradient.scatter_add_(-1, picked, gradient.new_ones(picked.shape) * -h)
    logits_nV.copy_(gradient.mul_(counted_n[:, None]))
    return torch.stack([loss, hard, soft_sum, entropy])


def _probability_of(picked: torch.Tensor, soft: torch.Tensor | SparseSoftLabels, target: torch.Tensor) -> torch.Tensor:
    """The teacher's probability of the hard labels ``picked``, [n, 1]; 0 for one that sparse labels do not contain."""
    if isinstance(soft, SparseSoftLabels):
        return (soft.probs.float() * (soft.token_ids == picked)).sum(-1, keepdim=True)
    return target.gather(-1, picked)  # of a teacher's logits, the target is its probabilities


def _softmax(logits: torch.Tensor, temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores minus their maximum, in float32; their softmax; log(sum(exp(scores))) without another exponential."""
    scores = logits.to(torch.float32, copy=True)
    if temperature != 1:
        scores /= temperature
    scores -= scores.amax(-1, keepdim=True)
    probs = scores.softmax(-1)
    return scores, probs, -probs.amax(-1).log()


def _dense_target(
    scores: torch.Tensor, log_sum_T: torch.Tensor, teacher_logits: torch.Tensor, temperature: float
) -> Target:
    """The target of a teacher's logits: the gradient is q_T minus the teacher's probabilities."""
    teacher_scores, p, teacher_log_sum = _softmax(teacher_logits, temperature)
    cross_n = log_sum_T - torch.linalg.vecdot(p, scores)
    return cross_n, teacher_log_sum - torch.linalg.vecdot(p, teacher_scores), 1.0, None, p


def _sparse_target(scores: torch.Tensor, q_T: torch.Tensor, log_sum_T: torch.Tensor, soft: SparseSoftLabels) -> Target:
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
