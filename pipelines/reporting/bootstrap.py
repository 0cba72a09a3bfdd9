"""The fraction of a gain that is kept, and its interval: a paired bootstrap over documents and seeds.

Examples of one document are correlated, so documents are resampled and not examples. Seeds are resampled too. Documents
and seeds are crossed: all models share both (Owen 2007, "The pigeonhole bootstrap", arXiv:0712.1111).

Bootstrap intervals of few samples are too short: with three seeds, they cover the truth about 80 % of the time.
Therefore the deviations of the resamples from the estimate are multiplied by one factor, so that the interval of a mean
has the length of Student's t interval (``half_length``). Hesterberg (2015, doi:10.1080/00031305.2015.1089789) widens
the bootstrap of one sample for the same reason. ``python -m benchmarks.coverage`` simulates how often the intervals
cover the truth.

Shapes: S seeds, E examples, D documents.
"""

from functools import lru_cache
from numbers import Integral
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit  # quantiles of Student's t; scipy.stats takes a second to import

from distill.arguments import require, require_sizes

Interval = tuple[float, float]
# Documents of equal size. With fewer, the intervals have not been shown to have their nominal coverage.
MIN_DOCUMENTS = 30
_BLOCK = 1000  # resamples per block; bounds the memory for weights in floating point


class DocumentLosses(NamedTuple):
    """The losses of a model, summed over the examples of each document."""

    sums: np.ndarray  # [S, D], nats
    counts: np.ndarray  # [D], examples

    @property
    def quality(self) -> float:
        """Negative mean loss per example, in nats per target token."""
        return -float(self.sums.mean(axis=0).sum() / self.counts.sum())


def effective_documents(counts: np.ndarray) -> float:
    """Effective number of documents (Kish 1965), from ``counts`` [D], the number of examples of each document."""
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
        baseline_losses, teacher_losses, student_losses: loss of each evaluated example in nats per target token, [E]
            or [S, E], for the same examples in the same order.
        documents: [E], the document of each example, as values that can be compared. Documents are resampled.
            None: each example is its own document.
        resamples: number of bootstrap samples of documents and seeds.
        seed: of the bootstrap's random generator.
        confidence: of the interval, in (0, 1).

    Returns:
        The fraction (1.0 means that the whole gain is kept) and its interval (low, high), all finite. None and None if
        the interval of the gain reaches 0 or is so close to 0 that the fraction has no finite interval, or if there are
        only one document and one seed.

    Raises:
        ValueError: the losses differ in shape or are not finite, ``documents`` does not have an entry for each example,
            or an argument is out of range.
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
    """The mean of ``fraction_kept`` over the ratios that have a fraction, with its 95 % interval.

    Args:
        teachers, students: losses per ratio. All ratios have the same resamples of seeds and documents.

    Returns:
        The mean and its interval (low, high). None and None if no ratio has a fraction, or if the interval is not
        finite because too many resamples have a teacher without a gain.

    Other arguments, shapes and errors are those of ``fraction_kept``.
    """
    pairs = zip(teachers, students, strict=True)
    found = [_fractions(baseline_losses, one, other, documents, resamples, 0, 0.95) for one, other in pairs]
    known = [one for one in found if one is not None]
    if not known:
        return None, None
    influence = np.mean([one.influence for one in known], axis=0)
    stretch = _stretch(influence, known[0].effective_documents, resamples, 0, 0.95)
    with np.errstate(invalid="ignore"):  # sums of infinities of both signs
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


def difference(first: np.ndarray, second: np.ndarray) -> tuple[float, Interval]:
    """The mean of ``first - second``, [S] each, S at least 2, with Student's 95 % t interval for paired values."""
    values = np.asarray(first) - np.asarray(second)
    reach = stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), (float(values.mean() - reach), float(values.mean() + reach))


class _Fraction(NamedTuple):
    """A fraction kept, with the parts of its interval."""

    own: float  # gain of the student over the baseline
    gain: float  # gain of the teacher over the baseline
    own_deviations: np.ndarray  # [resamples], deviations of the resamples from ``own``
    gain_deviations: np.ndarray  # [resamples], deviations of the resamples from ``gain``
    influence: np.ndarray  # [S, D], influence of each seed and document on the fraction
    effective_documents: float
    interval: Interval

    @property
    def fraction(self) -> float:
        return self.own / self.gain

    def resampled(self, stretch: float) -> np.ndarray:
        """The fraction of every resample, [resamples]."""
        return _ratios(self.own + stretch * self.own_deviations, self.gain + stretch * self.gain_deviations)


def _ratios(own: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """Student's gain divided by the teacher's gain.

    If the teacher has no gain in a resample, the ratio is infinite, with the sign of the student's gain. So a student
    below the baseline never counts as keeping more.
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
    """The fraction with the parts of its interval; None in the cases in which ``fraction_kept`` returns None."""
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
    influence = (own_influence - own / gains * gain_influence) / gains  # of a ratio, by the delta method
    stretch = _stretch(influence, effective, resamples, seed, confidence)
    sampled = _ratios(own + stretch * own_deviations, gains + stretch * gain_deviations)
    interval = _interval(sampled, confidence)
    if not np.isfinite(interval).all():
        return None
    return _Fraction(own, gains, own_deviations, gain_deviations, influence, effective, interval)


def _check_options(resamples: int, seed: int, confidence: float) -> None:
    require_sizes(resamples=resamples)
    require("seed", seed, "a whole number from 0", lambda given: isinstance(given, Integral) and int(given) >= 0)
    require("confidence", confidence, "a number between 0 and 1", lambda given: 0 < given < 1)


def _by_document(losses: list[np.ndarray], documents: np.ndarray | None) -> list[DocumentLosses]:
    arrays = [np.atleast_2d(np.asarray(values, dtype=np.float64)) for values in losses]
    shapes = {values.shape for values in arrays}
    if len(shapes) != 1 or len(arrays[0].shape) != 2 or not arrays[0].size:
        raise ValueError(f"losses must have the same seeds and examples, at least one, not shapes {sorted(shapes)}")
    if not all(np.isfinite(values).all() for values in arrays):
        raise ValueError("losses contain NaN or infinities; leave such examples out of all losses")
    examples = arrays[0].shape[1]
    if documents is None:
        return [DocumentLosses(values, np.ones(examples)) for values in arrays]
    if np.shape(documents) != (examples,):
        raise ValueError(
            f"documents must have one entry for each of {examples} examples, not shape {np.shape(documents)}"
        )
    _, number, counts = np.unique(documents, return_inverse=True, return_counts=True)
    return [
        DocumentLosses(np.stack([np.bincount(number, row, len(counts)) for row in values]), counts) for values in arrays
    ]


def _difference(model: DocumentLosses, other: DocumentLosses) -> tuple[float, np.ndarray]:
    """Difference in quality between ``model`` and ``other``, and the influence of each seed and document, [S, D]."""
    value = model.quality - other.quality
    # Documents differ in their number of examples, so a mean over examples is a ratio of two means over documents.
    influence = (other.sums - model.sums - value * model.counts) / model.counts.mean()
    if (documents := len(model.counts)) > 1:
        # A large document pulls the mean towards itself, so its residual is too small (CR2 of Bell and McCaffrey 2002).
        influence = influence * np.sqrt((1 - 1 / documents) / (1 - model.counts / model.counts.sum()))
    return value, influence


def _resampled(influence: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """The mean of ``influence`` [S, D] in each resample of documents and seeds, [resamples]."""
    seeds, documents = influence.shape
    of_documents, of_seeds = _draws(documents, seeds, resamples, seed)
    means = []
    for start in range(0, resamples, _BLOCK):
        block = slice(start, start + _BLOCK)
        means.append(((of_documents[block] @ influence.T) * of_seeds[block]).sum(axis=1) / influence.size)
    return np.concatenate(means)


def _stretch(influence: np.ndarray, documents: float, resamples: int, seed: int, confidence: float) -> float:
    """The factor for the deviations of the resamples (see the module). ``documents`` is as for ``half_length``."""
    low, high = _interval(_resampled(influence, resamples, seed), confidence)
    return 2 * half_length(influence, confidence, documents=documents) / (high - low) if high > low else 1.0


def half_length(values: np.ndarray, confidence: float = 0.95, *, documents: float | None = None) -> float:
    """Half the length of an interval for the mean of ``values`` [S, D], in which seeds and documents are both samples.

    The variance has two parts: the variance of the documents' means, and the variance of the seeds' means minus the
    part explained by the interaction of seeds and documents. Both means contain this interaction, which must not count
    twice. Each part gets a length from Student's quantile with its own degrees of freedom, and the squares of the
    lengths are added (MOVER; Zou and Donner 2008, doi:10.1002/sim.3095).

    Args:
        values: [S, D].
        confidence: of the interval, in (0, 1).
        documents: effective number of documents if they differ in size; None: D.
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
    """Number of times that each document [resamples, D] and each seed [resamples, S] is drawn in each resample."""
    rng = np.random.default_rng(seed)
    small = np.uint16 if max(documents, seeds) < 2**16 else np.uint32
    blocks = [min(_BLOCK, resamples - start) for start in range(0, resamples, _BLOCK)]
    drawn = [
        [rng.multinomial(count, np.full(count, 1 / count), size=size).astype(small) for size in blocks]
        for count in (documents, seeds)
    ]
    return np.concatenate(drawn[0]), np.concatenate(drawn[1])


def _interval(samples: np.ndarray, confidence: float) -> Interval:
    """Quantiles of ``samples``. A NaN, which is a mean of infinities of both signs, counts as both infinities."""
    with np.errstate(invalid="ignore"):  # interpolation between a number and infinity
        low = np.quantile(np.nan_to_num(samples, nan=-np.inf, posinf=np.inf, neginf=-np.inf), (1 - confidence) / 2)
        high = np.quantile(np.nan_to_num(samples, nan=np.inf, posinf=np.inf, neginf=-np.inf), (1 + confidence) / 2)
    return float(low), float(high)
