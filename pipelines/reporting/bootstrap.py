"""The fraction of a gain that is kept, and its interval: a paired bootstrap over documents and seeds.

Examples of one document are alike, so documents are resampled and not examples. Seeds are resampled too, and all
models share documents and seeds (crossed; Owen 2007, "The pigeonhole bootstrap", arXiv:0712.1111).

A bootstrap of few things is too narrow: that of three seeds covers the truth some 80 % of the time. Deviations of the
resamples from the estimate are therefore stretched by one factor, so that the interval of a mean has the length that
Student's t gives it (``half_length``). Hesterberg (2015, doi:10.1080/00031305.2015.1089789) widens a bootstrap of one
sample for the same reason. ``python -m benchmarks.coverage`` simulates how often the intervals cover the truth.

S seeds, E examples, D documents.
"""

from functools import lru_cache
from numbers import Integral
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit  # quantiles of Student's t; scipy.stats takes a second to import

from distill.arguments import require, require_sizes

Interval = tuple[float, float]
# Of equal size. Intervals of fewer were not shown to cover the truth as often as they say.
FEWEST_DOCUMENTS = 30
_BLOCK = 1000  # resamples whose weights exist as floating point numbers at a time


class Measured(NamedTuple):
    """A model's losses, summed over the examples of each document."""

    sums: np.ndarray  # [S, D], nats
    counts: np.ndarray  # [D], examples

    @property
    def quality(self) -> float:
        """Minus the mean loss of an example."""
        return -float(self.sums.mean(axis=0).sum() / self.counts.sum())


def effective_documents(counts: np.ndarray) -> float:
    """Documents of equal numbers of examples that are worth as much as these, by their numbers (Kish 1965)."""
    return float(counts.sum() ** 2 / (counts**2).sum())


def fraction_kept(
    baseline_losses: np.ndarray,
    teacher_losses: np.ndarray,
    student_losses: np.ndarray,
    *,
    documents: np.ndarray | None = None,
    resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float | None, Interval | None]:
    """(Q_student - Q_baseline) / (Q_teacher - Q_baseline), with its paired bootstrap interval.

    Args:
        baseline_losses, teacher_losses, student_losses: nats per target token of each evaluated example, [E] or
            [S, E], the same examples in the same order for all three.
        documents: [E], the document that each example is from, as any values that can be compared; these are
            resampled. None: each example is a document of its own.
        resamples: bootstrap samples of documents, and of seeds where there are several.
        seed: of the bootstrap.
        confidence: of the interval, in (0, 1).

    Returns:
        The fraction (1.0 keeps all of the gain) and (low, high); None and None where the interval of the gain
        reaches 0 or is nearly there, because a fraction of nothing says nothing, and where there is one document and
        one seed. Neither is ever infinite or NaN.

    Raises:
        ValueError: the losses do not have the same shape, ``documents`` does not name one for each example, or an
            argument is out of range.
    """
    found = _fractions(baseline_losses, teacher_losses, student_losses, documents, resamples, seed, confidence)
    return (None, None) if found is None else (found.fraction, found.interval)


def average_kept(
    baseline_losses: np.ndarray,
    teachers: list[np.ndarray],
    students: list[np.ndarray],
    *,
    documents: np.ndarray | None = None,
    resamples: int = 10_000,
) -> tuple[float | None, Interval | None]:
    """The mean of ``fraction_kept`` over the teachers of several ratios that gain, with its 95 % interval.

    Args:
        teachers, students: one array as of ``fraction_kept`` per ratio. A resample is the same for all ratios, which
            share their seeds, documents and baseline.

    Returns:
        None and None where no ratio has a fraction, or too many resamples have a teacher without a gain.
    """
    pairs = zip(teachers, students, strict=True)
    found = [_fractions(baseline_losses, one, other, documents, resamples, 0, 0.95) for one, other in pairs]
    known = [one for one in found if one is not None]
    if not known:
        return None, None
    influence = np.mean([one.influence for one in known], axis=0)
    stretch = _stretch(influence, known[0].effective_documents, resamples, 0, 0.95)
    with np.errstate(invalid="ignore"):  # the sum of infinities of both signs
        sampled = np.mean([one.resampled(stretch) for one in known], axis=0)
    interval = _interval(sampled, 0.95)
    return (float(np.mean([one.fraction for one in known])), interval) if np.isfinite(interval).all() else (None, None)


def gain(
    baseline_losses: np.ndarray,
    teacher_losses: np.ndarray,
    *,
    documents: np.ndarray | None = None,
    resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, Interval]:
    """Q_teacher - Q_baseline in nats per target token, with its paired bootstrap interval; see ``fraction_kept``."""
    _check_options(resamples, seed, confidence)
    baseline, teacher = _by_document([baseline_losses, teacher_losses], documents)
    value, influence = _difference(teacher, baseline)
    deviations = _resampled(influence, resamples, seed)
    stretch = _stretch(influence, effective_documents(baseline.counts), resamples, seed, confidence)
    return value, _interval(value + stretch * deviations, confidence)


def difference(first: np.ndarray, second: np.ndarray, *, confidence: float = 0.95) -> tuple[float, Interval]:
    """The mean of ``first - second``, [seeds] of at least 2, with Student's t interval of paired values."""
    values = np.asarray(first) - np.asarray(second)
    reach = stdtrit(len(values) - 1, (1 + confidence) / 2) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), (float(values.mean() - reach), float(values.mean() + reach))


class _Fraction(NamedTuple):
    """A fraction kept, and what its interval is made of."""

    own: float  # of the student's gain
    gain: float  # of the teacher's
    own_deviations: np.ndarray  # [resamples], from ``own``
    gain_deviations: np.ndarray  # [resamples], from ``gain``
    influence: np.ndarray  # [S, D], how each seed and document moves the fraction
    effective_documents: float
    interval: Interval

    @property
    def fraction(self) -> float:
        return self.own / self.gain

    def resampled(self, stretch: float) -> np.ndarray:
        """The fraction of every resample, [resamples]."""
        return _ratios(self.own + stretch * self.own_deviations, self.gain + stretch * self.gain_deviations)


def _ratios(own: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """Own gain over the teacher's gain.

    A resample without a gain counts as infinite, with the sign of what the student gains in it: a student below the
    baseline does not keep more for it.
    """
    return np.divide(own, gains, out=np.copysign(np.inf, own), where=gains > 0)


def _fractions(
    baseline_losses: np.ndarray,
    teacher_losses: np.ndarray,
    student_losses: np.ndarray,
    documents: np.ndarray | None,
    resamples: int,
    seed: int,
    confidence: float,
) -> _Fraction | None:
    """None where the gain is not sure."""
    _check_options(resamples, seed, confidence)
    baseline, teacher, student = _by_document([baseline_losses, teacher_losses, student_losses], documents)
    effective = effective_documents(baseline.counts)
    gains, gain_influence = _difference(teacher, baseline)
    own, own_influence = _difference(student, baseline)
    gain_deviations = _resampled(gain_influence, resamples, seed)
    stretch = _stretch(gain_influence, effective, resamples, seed, confidence)
    if gain_influence.size == 1 or _interval(gains + stretch * gain_deviations, confidence)[0] <= 0:
        return None
    own_deviations = _resampled(own_influence, resamples, seed)
    influence = (own_influence - own / gains * gain_influence) / gains  # of a ratio (the delta method)
    stretch = _stretch(influence, effective, resamples, seed, confidence)
    sampled = _ratios(own + stretch * own_deviations, gains + stretch * gain_deviations)
    interval = _interval(sampled, confidence)
    if not np.isfinite(interval).all():
        return None
    return _Fraction(own, gains, own_deviations, gain_deviations, influence, effective, interval)


def _check_options(resamples: int, seed: int, confidence: float) -> None:
    require_sizes(resamples=resamples)
    require("seed", seed, "a whole number from 0", lambda given: isinstance(given, Integral) and given >= 0)
    require("confidence", confidence, "a number between 0 and 1", lambda given: 0 < given < 1)


def _by_document(losses: list[np.ndarray], documents: np.ndarray | None) -> list[Measured]:
    arrays = [np.atleast_2d(np.asarray(values, dtype=np.float64)) for values in losses]
    shapes = {values.shape for values in arrays}
    if len(shapes) != 1 or len(arrays[0].shape) != 2 or not arrays[0].size:
        raise ValueError(f"losses must have the same seeds and examples, at least one, not shapes {sorted(shapes)}")
    if not all(np.isfinite(values).all() for values in arrays):
        raise ValueError("losses hold NaN or infinities; leave such examples out of all three")
    examples = arrays[0].shape[1]
    if documents is None:
        return [Measured(values, np.ones(examples)) for values in arrays]
    if np.shape(documents) != (examples,):
        raise ValueError(
            f"documents must name one for each of {examples} examples, not have shape {np.shape(documents)}"
        )
    _, number, counts = np.unique(documents, return_inverse=True, return_counts=True)
    return [Measured(np.stack([np.bincount(number, row, len(counts)) for row in values]), counts) for values in arrays]


def _difference(model: Measured, other: Measured) -> tuple[float, np.ndarray]:
    """How much better ``model`` is, and how each seed and document moves that, [S, D]."""
    value = model.quality - other.quality
    # Of a mean over examples, where documents have different numbers of them: a ratio of two means over documents.
    influence = (other.sums - model.sums - value * model.counts) / model.counts.mean()
    if (documents := len(model.counts)) > 1:
        # The mean follows a large document, which looks nearer to it than it is (CR2 of Bell and McCaffrey 2002).
        influence = influence * np.sqrt((1 - 1 / documents) / (1 - model.counts / model.counts.sum()))
    return value, influence


def _resampled(influence: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """The mean of ``influence`` [S, D] in every resample of documents and seeds, [resamples]."""
    seeds, documents = influence.shape
    of_documents, of_seeds = _draws(documents, seeds, resamples, seed)
    means = []
    for start in range(0, resamples, _BLOCK):
        block = slice(start, start + _BLOCK)
        means.append(((of_documents[block] @ influence.T) * of_seeds[block]).sum(axis=1) / influence.size)
    return np.concatenate(means)


def _stretch(influence: np.ndarray, documents: float, resamples: int, seed: int, confidence: float) -> float:
    """The factor that the deviations of the resamples need, see the module; ``documents`` as in ``half_length``."""
    low, high = _interval(_resampled(influence, resamples, seed), confidence)
    return 2 * half_length(influence, confidence, documents=documents) / (high - low) if high > low else 1.0


def half_length(values: np.ndarray, confidence: float = 0.95, *, documents: float | None = None) -> float:
    """Half the length of an interval for the mean of ``values`` [S, D], where seeds and documents are both samples.

    The variance has two parts: the variance of the documents' means, and the variance of the seeds' means without the
    part that the interaction of seeds and documents explains. Both means hold that interaction; it must not count
    twice. Student's quantile of its own degrees of freedom gives each part a length; the squares of both lengths are
    added (MOVER; Zou and Donner 2008, doi:10.1002/sim.3095).

    Args:
        documents: how many the D are worth, where they are of different sizes.
    """
    seeds, columns = values.shape
    mean, of_seed, of_document = values.mean(), values.mean(axis=1, keepdims=True), values.mean(axis=0)

    def squared(variance: float, count: float) -> float:
        return variance * stdtrit(max(count - 1, 1), (1 + confidence) / 2) ** 2

    by_document = by_seed = by_both = 0.0
    if columns > 1:
        by_document = ((of_document - mean) ** 2).sum() / (columns - 1) / columns
    if seeds > 1:
        by_seed = ((of_seed - mean) ** 2).sum() / (seeds - 1) / seeds
    if seeds > 1 and columns > 1:
        rest = values - of_seed - of_document + mean
        by_both = (rest**2).sum() / ((seeds - 1) * (columns - 1)) / values.size
    return float(np.sqrt(squared(by_document, documents or columns) + squared(max(by_seed - by_both, 0.0), seeds)))


@lru_cache(maxsize=1)
def _draws(documents: int, seeds: int, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each document [resamples, D] and each seed [resamples, S] is drawn in each resample."""
    rng = np.random.default_rng(seed)
    small = np.uint16 if max(documents, seeds) < 2**16 else np.uint32
    blocks = [min(_BLOCK, resamples - start) for start in range(0, resamples, _BLOCK)]
    drawn = [
        [rng.multinomial(count, np.full(count, 1 / count), size=size).astype(small) for size in blocks]
        for count in (documents, seeds)
    ]
    return np.concatenate(drawn[0]), np.concatenate(drawn[1])


def _interval(samples: np.ndarray, confidence: float) -> Interval:
    """Quantiles. A sample that is not known, the mean of infinities of both signs, counts as worse and as better."""
    with np.errstate(invalid="ignore"):  # between a number and infinity
        low = np.quantile(np.nan_to_num(samples, nan=-np.inf, posinf=np.inf, neginf=-np.inf), (1 - confidence) / 2)
        high = np.quantile(np.nan_to_num(samples, nan=np.inf, posinf=np.inf, neginf=-np.inf), (1 + confidence) / 2)
    return float(low), float(high)
