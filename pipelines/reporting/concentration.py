"""Whether a few documents decide a comparison: the share of the loss in the documents with the highest loss."""

from math import ceil
from typing import Any

import numpy as np

_SHARE = 0.05  # of the documents
_TOO_MUCH = 0.25  # of the loss; more makes the report warn


def hardest_documents(
    losses: np.ndarray, documents: np.ndarray, weights: np.ndarray | None
) -> tuple[dict[str, Any], int]:
    """The documents with the highest mean loss: a twentieth of all, at least one.

    Args:
        losses: of the baseline in nats per target token, [S, E].
        documents: number of the document of each example, [E].
        weights: target tokens of each example, [E]; None: equal weights.

    Returns:
        ``documents``, their number, and ``tokens`` and ``loss``, their shares of all target tokens and of the whole
        loss, in [0, 1]; and the index of an example of the document with the highest mean loss, in [0, E).
    """
    sizes = np.ones(len(documents)) if weights is None else weights
    _, first, number = np.unique(documents, return_index=True, return_inverse=True)
    tokens, loss = np.bincount(number, sizes), np.bincount(number, losses.mean(0) * sizes)
    order = np.argsort(-loss / tokens, kind="stable")
    hardest = order[: ceil(_SHARE * len(order))]
    shares = {name: float(of[hardest].sum() / of.sum()) for name, of in (("tokens", tokens), ("loss", loss))}
    return {"documents": len(hardest), **shares}, int(first[hardest[0]])


def hardest_sentence(data: dict[str, Any]) -> str:
    """Shares of the documents with the highest loss, and of the tokens that training never had.

    Args:
        data: the section ``data`` of report.json.
    """
    hardest, unseen = data["hardest"], data["unseen"]
    shares = f"{hardest['tokens']:.1%} of the target tokens and {hardest['loss']:.1%} of the baseline's loss"
    never = f" {unseen:.2%} of the {data['eval_split']} tokens never occur in the training split." if unseen else ""
    return f"{_subject(hardest['documents'])} {shares}.{never}"


def hardest_warning(data: dict[str, Any]) -> str:
    """A warning if these documents have more than a quarter of the loss, else nothing.

    Args:
        data: the section ``data`` of report.json.
    """
    hardest = data["hardest"]
    if hardest["loss"] <= _TOO_MUCH:
        return ""
    shown = f" (an example: {hardest['input']!r:.60})" if "input" in hardest else ""
    return f" {_subject(hardest['documents'])} {hardest['loss']:.0%} of the baseline's loss; look at them{shown}."


def _subject(documents: int) -> str:
    if documents == 1:
        return "The document with the highest loss has"
    return f"The {documents:,} documents with the highest loss have"
