"""Figures of a model as sums over documents, from losses or from answers. Intervals are computed from these sums.

A mean over examples is a ratio of two sums over documents: of the losses, and of the examples' sizes. A metric of a
whole corpus, such as BLEU, is not. It is replaced by the ratio that has the same value and, to first order, changes as
the metric does if documents are counted more or less often (the delta method). So losses and metrics have the same
intervals, gains and fractions.

Shapes: S seeds, E examples, D documents, K statistics of a metric.
"""

from typing import NamedTuple

import numpy as np

from distill.metrics import Metric

_STEP = 1e-5  # of a central difference, relative to the statistic


class DocumentSums(NamedTuple):
    """A figure of a model, as a ratio of sums over documents. Higher is better."""

    sums: np.ndarray  # [S, D]
    sizes: np.ndarray  # [D], examples or their weights; the same for all models of a comparison

    @property
    def value(self) -> float:
        """The mean over seeds of the figure, for example a quality in nats per target token."""
        return float(self.sums.mean(axis=0).sum() / self.sizes.sum())

    def of_seed(self, number: int) -> "DocumentSums":
        """The figure of one seed, counted from 0."""
        return DocumentSums(self.sums[number : number + 1], self.sizes)


def loss_sums(
    losses: list[np.ndarray], documents: np.ndarray | None = None, weights: np.ndarray | None = None
) -> list[DocumentSums]:
    """The quality of several models: minus the weighted mean of their losses.

    Args:
        losses: of each model, [E] or [S, E], for the same examples in the same order.
        documents: [E], the document of each example, as values that can be compared; None: each its own.
        weights: [E], above 0, for example the number of target tokens that each loss is a mean over; None: equal.

    Raises:
        ValueError: the losses differ in shape or are not finite, or ``documents`` or ``weights`` does not have a valid
            entry for each example.
    """
    arrays = [np.atleast_2d(np.asarray(values, dtype=np.float64)) for values in losses]
    shapes = {values.shape for values in arrays}
    if len(shapes) != 1 or len(arrays[0].shape) != 2 or not arrays[0].size:
        raise ValueError(f"losses must have the same seeds and examples, at least one, not shapes {sorted(shapes)}")
    if not all(np.isfinite(values).all() for values in arrays):
        raise ValueError("losses contain NaN or infinities; leave such examples out of all losses")
    examples = arrays[0].shape[1]
    if weights is not None:
        weights = np.asarray(weights, dtype=np.float64)
        if weights.shape != (examples,) or not (np.isfinite(weights).all() and (weights > 0).all()):
            raise ValueError(f"weights must have one number above 0 for each of {examples} examples")
        arrays = [values * weights for values in arrays]
    if documents is None:
        return [DocumentSums(-values, np.ones(examples) if weights is None else weights) for values in arrays]
    _check_documents(documents, examples)
    _, number, counts = np.unique(documents, return_inverse=True, return_counts=True)
    sizes = counts if weights is None else np.bincount(number, weights)
    return [DocumentSums(-_summed(values, number, len(counts)), sizes) for values in arrays]


def metric_sums(metric: Metric, statistics: np.ndarray, documents: np.ndarray) -> DocumentSums:
    """A metric of one model's answers. If lower is better, the value is minus the metric.

    Args:
        statistics: of ``Metric.statistics`` for each seed, [S, E, K].
        documents: as for ``loss_sums``, [E].

    Raises:
        ValueError: ``documents`` does not have an entry for each example.
    """
    _check_documents(documents, statistics.shape[1])
    names, number = np.unique(documents, return_inverse=True)
    by_document = np.stack([_summed(one.T, number, len(names)).T for one in statistics])  # [S, D, K]
    totals = by_document.sum(axis=1)
    sizes = by_document[0, :, 1] if by_document[0, :, 1].any() else np.ones(len(names))
    influence = np.einsum("sdk,sk->sd", by_document, _gradients(metric, totals))
    influence -= influence.mean(axis=1, keepdims=True)
    sums = sizes.sum() * influence + metric.score(totals)[:, None] * sizes
    return DocumentSums(sums if metric.better == "higher" else -sums, sizes)


def _gradients(metric: Metric, totals: np.ndarray) -> np.ndarray:
    """The derivative of the score with respect to each statistic, at the sums ``totals`` [S, K] of all examples.

    Statistics are counts. If one is 0 in the sum, it is 0 in every document, so its derivative is never needed.
    """
    change = np.eye(totals.shape[-1]) * _STEP * totals[:, None]  # [S, K, K], one statistic at a time
    rise = metric.score(totals[:, None] + change) - metric.score(totals[:, None] - change)
    return np.divide(rise, 2 * _STEP * totals, out=np.zeros_like(totals), where=totals > 0)


def _summed(values: np.ndarray, number: np.ndarray, documents: int) -> np.ndarray:
    """Sums over the examples of each document: ``values`` [N, E] -> [N, D]."""
    return np.stack([np.bincount(number, row, documents) for row in values])


def _check_documents(documents: np.ndarray, examples: int) -> None:
    if np.shape(documents) != (examples,):
        raise ValueError(
            f"documents must have one entry for each of {examples} examples, not shape {np.shape(documents)}"
        )
