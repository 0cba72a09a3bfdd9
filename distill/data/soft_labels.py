"""The teacher's distribution over the vocabulary, as a few token ids per target token.

``top_k`` keeps the K most probable tokens with their probabilities. All other tokens form one more class, with the
remaining probability. This estimate of the distribution is biased.

``sampled`` keeps K draws from the distribution, each with probability 1/K. Its expectation is the distribution, for any
K (Sparse Logit Sampling, arXiv:2503.16870, with the teacher as the proposal). The sampling is systematic: the K points
are evenly spaced on the cumulative distribution, with one random offset. Like independent draws it is unbiased, but it
has a lower variance and includes every token of probability 1/K or more.

N tokens, D d_model, V vocabulary size, K token ids per target token.
"""

import torch
import torch.nn.functional as F

from distill.loss_gradient import SparseSoftLabels

_CHUNK = 2**23  # logits in memory at a time: 32 MiB in float32


def sparse_labels(
    hidden: torch.Tensor,
    head: torch.Tensor,
    *,
    num_tokens: int,
    temperature: float = 1.0,
    offsets: torch.Tensor | None = None,
) -> SparseSoftLabels:
    """The softmax of ``hidden @ head.T / temperature`` as K = ``num_tokens`` token ids per target token.

    It is computed in chunks of target tokens.

    Args:
        hidden: [N, D]. The product with ``head`` has its dtype; all other operations are in float32 or float64.
        head: [V, D].
        num_tokens: K, at most V.
        temperature: above 0.
        offsets: [N] float64 in [0, 1), uniform and independent, for ``sampled``; None for ``top_k``.

    Returns:
        token_ids [N, K] int64, probs [N, K] float32 and entropy [N] float32, in nats. For ``top_k``, probs are rounded
        to float16, the stored type, and entropy is that of the K + 1 classes. For ``sampled``, entropy is that of the
        full distribution, so cross-entropy minus entropy is an unbiased estimate of the KL divergence.
    """
    head, size = head.to(hidden.dtype), max(_CHUNK // len(head), 1)
    parts = []
    with torch.autocast(hidden.device.type, enabled=False):
        for start in range(0, len(hidden), size):
            rows = slice(start, start + size)
            log_p = (F.linear(hidden[rows], head).float() / temperature).log_softmax(-1)
            parts.append(
                _top_k(log_p, num_tokens) if offsets is None else _systematic(log_p, num_tokens, offsets[rows])
            )
    return SparseSoftLabels(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _top_k(log_p: torch.Tensor, num_tokens: int) -> SparseSoftLabels:
    log_probs, chosen = log_p.topk(num_tokens)
    probs = log_probs.exp().half().float()
    rest = (1 - probs.sum(-1, keepdim=True)).clamp(min=0)
    classes = torch.cat([probs, rest], dim=-1)
    return SparseSoftLabels(chosen, probs, -torch.xlogy(classes, classes).sum(-1))


def _systematic(log_p: torch.Tensor, num_tokens: int, offsets: torch.Tensor) -> SparseSoftLabels:
    """Draw j is the token whose interval of the cumulative distribution contains (j + offset) / K."""
    probs = log_p.exp()
    cumulative = probs.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:].contiguous()  # 1 except for rounding
    draws = torch.arange(num_tokens, device=log_p.device, dtype=torch.float64)
    points = (draws + offsets[:, None]) / num_tokens * total
    # A point that rounding has moved to the total would be beyond the last token of nonzero probability.
    chosen = torch.searchsorted(cumulative, points, right=True).minimum(torch.searchsorted(cumulative, total))
    return SparseSoftLabels(chosen, equal_shares(chosen), -(probs * log_p).sum(-1))


def equal_shares(token_ids: torch.Tensor) -> torch.Tensor:
    """The probabilities of sampled ``token_ids`` [N, K]: 1/K each, [N, K] float32.

    They are rounded up, so that their sum is at least 1 in any order of addition. A smaller sum would leave probability
    for other tokens.
    """
    count = token_ids.shape[-1]
    return torch.full(token_ids.shape, (1 + count * torch.finfo(torch.float32).eps) / count, device=token_ids.device)
