"""A figure of all models of a comparison, and the values of report.json that compare them.

Shapes: S seeds, E evaluated examples, K statistics of a metric.
"""

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from distill.metrics import Metric
from pipelines.reporting.bootstrap import compare, difference, gain_of_sums
from pipelines.reporting.sums import DocumentSums, loss_sums, metric_sums
from pipelines.reporting.verdict import AGAINST, why_no_interval, why_undefined

T = TypeVar("T")
U = TypeVar("U")


class Models(NamedTuple, Generic[T]):
    """A value for each model of a comparison."""

    baselines: dict[str, T]  # by suffix: "" the baseline, "_long" the long baseline
    teachers: dict[str, T]  # by ratio
    students: dict[tuple[str, str | None], T]  # by ratio and variant

    def map(self, change: Callable[[T], U]) -> "Models[U]":
        """``change`` of each value."""
        return Models(
            {key: change(value) for key, value in self.baselines.items()},
            {key: change(value) for key, value in self.teachers.items()},
            {key: change(value) for key, value in self.students.items()},
        )


class Figure(NamedTuple):
    """The quality or a metric of all models, from values of each evaluated example."""

    values: Models[np.ndarray]  # losses in nats per target token [S, E], or statistics of the metric [S, E, K]
    documents: np.ndarray  # [E], number of the document that each example is from
    weights: np.ndarray | None = None  # [E], target tokens of each loss; None: equal weights
    metric: Metric | None = None  # None: the quality

    def sums(self, chosen: np.ndarray | None = None) -> Models[DocumentSums]:
        """The figure as sums over documents.

        Args:
            chosen: which examples to sum, boolean [E]; None: all.
        """
        rows = slice(None) if chosen is None else chosen
        documents = self.documents[rows]
        if self.metric:
            metric = self.metric
            return self.values.map(lambda values: metric_sums(metric, values[:, rows], documents))
        weights = None if self.weights is None else self.weights[rows]
        return self.values.map(lambda losses: loss_sums([losses[:, rows]], documents, weights)[0])


def mean_quality(losses: np.ndarray, weights: np.ndarray | None) -> float:
    """Minus the mean of losses [S, E] over seeds and examples, whose weights are [E] or, if None, equal."""
    return -float(losses.mean() if weights is None else np.average(losses, axis=1, weights=weights).mean())


def compared(
    sums: Models[DocumentSums],
    ratio: str,
    variant: str | None,
    resamples: int,
    *,
    unit: str = "nats per target token",
    against: tuple[str, ...] = tuple(AGAINST),
) -> dict[str, Any]:
    """The values of report.json on one teacher and student: gains, fractions kept, and reasons why there are none.

    Args:
        sums: the figure of all models.
        ratio: of teacher and student.
        variant: of the student.
        resamples: number of bootstrap samples.
        unit: of the gain, for the reasons.
        against: suffixes of the baselines.
    """
    row: dict[str, Any] = {}
    teacher, student = sums.teachers[ratio], sums.students[ratio, variant]
    for suffix in against:
        found = compare(sums.baselines[suffix], teacher, student, resamples=resamples)
        row |= {f"gain{suffix}": found.gain, f"gain{suffix}_interval": list(found.gain_interval)}
        bounds = found.fraction_interval
        row |= {f"fraction_kept{suffix}": found.fraction}
        row |= {f"fraction{suffix}_interval": list(bounds) if bounds else None}
        if teacher.sums.size == 1:
            row[f"fraction{suffix}_undefined"] = why_no_interval(AGAINST[suffix])
        elif found.fraction is None:
            row[f"fraction{suffix}_undefined"] = why_undefined(found.gain, found.gain_interval, AGAINST[suffix], unit)
    return row


def student_gains(
    sums: Models[DocumentSums],
    ratio: str,
    variant: str | None,
    resamples: int,
    *,
    against: tuple[str, ...] = tuple(AGAINST),
) -> dict[str, Any]:
    """The values of report.json on the gains of one student, also where its teacher has no gain to keep.

    The arguments are those of ``compared``.
    """
    row: dict[str, Any] = {}
    for suffix in against:
        gain, bounds = gain_of_sums(sums.baselines[suffix], sums.students[ratio, variant], resamples=resamples)
        row |= {f"student_gain{suffix}": gain, f"student_gain{suffix}_interval": list(bounds)}
    return row


def kept_by_seed(
    sums: Models[DocumentSums], ratio: str, variant: str | None, suffix: str, resamples: int
) -> list[float] | None:
    """The fraction that each seed's student keeps of the gain of its own teacher; None if a seed has no fraction."""
    models = sums.baselines[suffix], sums.teachers[ratio], sums.students[ratio, variant]
    found = [
        compare(*(model.of_seed(seed) for model in models), resamples=resamples).fraction
        for seed in range(len(models[0].sums))
    ]
    known = [one for one in found if one is not None]
    return known if len(known) == len(found) else None


def differences_by_seed(rows: list[dict[str, Any]], variants: list[str]) -> list[dict[str, Any]]:
    """Difference of the fraction kept between each variant and "paper" (or the first variant), with its interval.

    The fraction of a seed is the mean over the ratios in which every seed has a fraction of its own. With one seed,
    there are no differences.
    """
    undefined = {row["ratio"] for row in rows if row["fraction_kept_by_seed"] is None}
    defined = [row for row in rows if row["ratio"] not in undefined]
    if not variants or not defined or len(defined[0]["seeds"]) == 1:
        return []
    kept = {
        name: np.mean([row["fraction_kept_by_seed"] for row in defined if row["variant"] == name], axis=0)
        for name in variants
    }
    other = "paper" if "paper" in kept else variants[0]
    found = []
    for name in (name for name in variants if name != other):
        mean, interval = difference(kept[name], kept[other])
        by_seed = (kept[name] - kept[other]).tolist()
        found.append({"variant": name, "to": other, "difference": mean, "interval": list(interval), "by_seed": by_seed})
    return found
