"""The teacher's distribution over the vocabulary, in a few token ids per target token.

``top_k`` keeps the K likeliest tokens with their probabilities; what these lack of 1 is the mass of all others,
one class more. ``sampled`` keeps K draws from the distribution, each with probability 1/K: on average that is the
distribution itself, whatever K, where the K likeliest tokens are biased (Sparse Logit Sampling, arXiv:2503.16870, with
the teacher as the proposal). Its draws are systematic: one random offset for all K, which stand evenly over the
cumulative distribution. They are unbiased too, vary less than independent draws, and include every token of
probability 1/K or more.

N tokens, D d_model, V vocabulary size, K token ids per target token.
"""

import torch
import torch.nn.functional as F

from distill.loss import SparseSoftLabels

_CHUNK = 2**23  # logits that exist at a time: 32 MiB in float32


def sparse_labels(
    hidden: torch.Tensor,
    head: torch.Tensor,
    *,
    num_tokens: int,
    temperature: float = 1.0,
    offsets: torch.Tensor | None = None,
) -> SparseSoftLabels:
    """The softmax of ``hidden @ head.T / temperature`` in K = ``num_tokens`` token ids for each target token.

    Computed chunk by chunk of target tokens.

    Args:
        hidden: [N, D]; the product with ``head`` [V, D] runs in its dtype, all else in float32 or wider.
        num_tokens: at most V.
        temperature: above 0.
        offsets: [N] float64 in [0, 1), uniform and independent, for ``sampled``; None for ``top_k``.

    Returns:
        token_ids [N, K] int64, probs [N, K] and entropy [N] float32. For ``top_k``, probs are rounded to float16 as
        they are stored, and entropy is that of the K + 1 classes; for ``sampled``, it is the whole distribution's,
        so that cross-entropy minus entropy is an unbiased estimate of the KL divergence.
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
    """Draw j is the token in whose part of the cumulative distribution (j + offset) / K falls."""
    probs = log_p.exp()
    cumulative = probs.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:].contiguous()  # 1 but for rounding
    draws = torch.arange(num_tokens, device=log_p.device, dtype=torch.float64)
    points = (draws + offsets[:, None]) / num_tokens * total
    # A point that was rounded up to the total would lie beyond the last token of nonzero probability.
    chosen = torch.searchsorted(cumulative, points, right=True).minimum(torch.searchsorted(cumulative, total))
    return SparseSoftLabels(chosen, equal_shares(chosen), -(probs * log_p).sum(-1))


def equal_shares(token_ids: torch.Tensor) -> torch.Tensor:
    """The probabilities of sampled ``token_ids`` [N, K]: 1/K each.

    Rounded up, so that in no order of addition they lack anything of 1: that would be a mass of other tokens.
    """
    count = token_ids.shape[-1]
    return torch.full(token_ids.shape, (1 + count * torch.finfo(torch.float32).eps) / count, device=token_ids.device)
