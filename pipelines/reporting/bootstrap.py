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

from numbers import Integral
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit  # quantiles of Student's t; scipy.stats takes a second to import

from distill.arguments import require, require_sizes
from pipelines.reporting.resampling import Interval, quantile_interval, resampled
from pipelines.reporting.sums import DocumentSums, loss_sums

# Documents of equal size. With fewer, the intervals have not been shown to have their nominal coverage.
MIN_DOCUMENTS = 30


def effective_documents(sizes: np.ndarray) -> float:
    """Effective number of documents (Kish 1965), from ``sizes`` [D], the number of examples of each document."""
    return float(sizes.sum() ** 2 / (sizes**2).sum())


class Comparison(NamedTuple):
    """A teacher and a student, compared with a baseline."""

    gain: float  # of the teacher over the baseline
    gain_interval: Interval
    fraction: float | None
    fraction_interval: Interval | None


def compare(
    baseline: DocumentSums,
    teacher: DocumentSums,
    student: DocumentSums,
    *,
    resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Comparison:
    """The gain of a teacher and the fraction of it that a student keeps, in losses or in a metric.

    Args:
        baseline, teacher, student: sums of ``pipelines.reporting.sums`` over the same documents.

    Other arguments and the cases without a fraction are those of ``fraction_kept``.
    """
    gains = _gains(baseline, teacher, resamples, seed, confidence)
    found = _fraction(gains, baseline, student)
    fraction, interval = (None, None) if found is None else (found.fraction, found.interval)
    return Comparison(gains.value, gains.interval, fraction, interval)


def gain_of_sums(baseline: DocumentSums, model: DocumentSums, *, resamples: int = 10_000) -> tuple[float, Interval]:
    """The gain of a model over a baseline, with its 95 % interval.

    Args:
        baseline, model: sums of ``pipelines.reporting.sums`` over the same documents.
        resamples: number of bootstrap samples of documents and seeds.
    """
    found = _gains(baseline, model, resamples, 0, 0.95)
    return found.value, found.interval


def fraction_kept(
    baseline_losses: np.ndarray,
    teacher_losses: np.ndarray,
    student_losses: np.ndarray,
    *,
    documents: np.ndarray | None = None,
    weights: np.ndarray | None = None,
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
        weights: [E], above 0, the weight of each example in a quality, for example its number of target tokens. None:
            all examples have the same weight.
        resamples: number of bootstrap samples of documents and seeds.
        seed: of the bootstrap's random generator.
        confidence: of the interval, in (0, 1).

    Returns:
        The fraction (1.0 means that the whole gain is kept) and its interval (low, high), all finite. None and None if
        the interval of the gain reaches 0 or is so close to 0 that the fraction has no finite interval, or if there are
        only one document and one seed.

    Raises:
        ValueError: the losses differ in shape or are not finite, ``documents`` or ``weights`` does not have a valid
            entry for each example, or an argument is out of range.
    """
    _check_options(resamples, seed, confidence)
    models = loss_sums([baseline_losses, teacher_losses, student_losses], documents, weights)
    found = compare(*models, resamples=resamples, seed=seed, confidence=confidence)
    return found.fraction, found.fraction_interval


def average_kept(
    baseline_losses: np.ndarray,
    teachers: list[np.ndarray],
    students: list[np.ndarray],
    *,
    documents: np.ndarray | None = None,
    weights: np.ndarray | None = None,
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
    _check_options(resamples, 0, 0.95)
    baseline, *models = loss_sums([baseline_losses, *teachers, *students], documents, weights)
    pairs = zip(models[: len(teachers)], models[len(teachers) :], strict=True)
    found = [_fraction(_gains(baseline, one, resamples, 0, 0.95), baseline, other) for one, other in pairs]
    known = [one for one in found if one is not None]
    if not known:
        return None, None
    influence = np.mean([one.influence for one in known], axis=0)
    deviations = resampled(influence, resamples, 0)
    factor = _stretch(influence, deviations, effective_documents(baseline.sizes), 0.95)
    with np.errstate(invalid="ignore"):  # sums of infinities of both signs
        sampled = np.mean([one.resampled(factor) for one in known], axis=0)
    interval = quantile_interval(sampled, 0.95)
    return (float(np.mean([one.fraction for one in known])), interval) if np.isfinite(interval).all() else (None, None)


def gain(
    baseline_losses: np.ndarray,
    teacher_losses: np.ndarray,
    *,
    documents: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, Interval]:
    """Q_teacher - Q_baseline in nats per target token, with its paired bootstrap interval; see ``fraction_kept``."""
    _check_options(resamples, seed, confidence)
    baseline, teacher = loss_sums([baseline_losses, teacher_losses], documents, weights)
    found = _gains(baseline, teacher, resamples, seed, confidence)
    return found.value, found.interval


def difference(first: np.ndarray, second: np.ndarray) -> tuple[float, Interval]:
    """The mean of ``first - second``, [S] each, S at least 2, with Student's 95 % t interval for paired values."""
    values = np.asarray(first) - np.asarray(second)
    reach = stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), (float(values.mean() - reach), float(values.mean() + reach))


class _Gains(NamedTuple):
    """The gain of a teacher over a baseline, with the parts and the settings of its interval."""

    value: float
    influence: np.ndarray  # [S, D]
    deviations: np.ndarray  # [resamples], deviations of the resamples from ``value``
    interval: Interval
    resamples: int
    seed: int
    confidence: float


def _gains(baseline: DocumentSums, teacher: DocumentSums, resamples: int, seed: int, confidence: float) -> _Gains:
    value, influence = _difference(teacher, baseline)
    deviations = resampled(influence, resamples, seed)
    factor = _stretch(influence, deviations, effective_documents(baseline.sizes), confidence)
    interval = quantile_interval(value + factor * deviations, confidence)
    return _Gains(value, influence, deviations, interval, resamples, seed, confidence)


class _Fraction(NamedTuple):
    """A fraction kept, with the parts of its interval."""

    own: float  # gain of the student over the baseline
    gain: float  # gain of the teacher over the baseline
    own_deviations: np.ndarray  # [resamples], deviations of the resamples from ``own``
    gain_deviations: np.ndarray  # [resamples], deviations of the resamples from ``gain``
    influence: np.ndarray  # [S, D], influence of each seed and document on the fraction
    interval: Interval

    @property
    def fraction(self) -> float:
        return self.own / self.gain

    def resampled(self, factor: float) -> np.ndarray:
        """The fraction of every resample, [resamples]."""
        return _ratios(self.own + factor * self.own_deviations, self.gain + factor * self.gain_deviations)


def _ratios(own: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """Student's gain divided by the teacher's gain.

    If the teacher has no gain in a resample, the ratio is infinite, with the sign of the student's gain. So a student
    below the baseline never counts as keeping more.
    """
    return np.divide(own, gains, out=np.copysign(np.inf, own), where=gains > 0)


def _fraction(gains: _Gains, baseline: DocumentSums, student: DocumentSums) -> _Fraction | None:
    """The fraction with the parts of its interval; None in the cases in which ``fraction_kept`` returns None."""
    if gains.influence.size == 1 or gains.interval[0] <= 0:
        return None
    settings = gains.resamples, gains.seed
    own, own_influence = _difference(student, baseline)
    own_deviations = resampled(own_influence, *settings)
    influence = (own_influence - own / gains.value * gains.influence) / gains.value  # of a ratio, by the delta method
    deviations = resampled(influence, *settings)
    factor = _stretch(influence, deviations, effective_documents(baseline.sizes), gains.confidence)
    sampled = _ratios(own + factor * own_deviations, gains.value + factor * gains.deviations)
    interval = quantile_interval(sampled, gains.confidence)
    if not np.isfinite(interval).all():
        return None
    return _Fraction(own, gains.value, own_deviations, gains.deviations, influence, interval)


def _check_options(resamples: int, seed: int, confidence: float) -> None:
    require_sizes(resamples=resamples)
    require("seed", seed, "a whole number from 0", lambda given: isinstance(given, Integral) and int(given) >= 0)
    require("confidence", confidence, "a number between 0 and 1", lambda given: 0 < given < 1)


def _difference(model: DocumentSums, other: DocumentSums) -> tuple[float, np.ndarray]:
    """Difference in a figure between ``model`` and ``other``, and the influence of each seed and document, [S, D]."""
    value, sizes = model.value - other.value, model.sizes
    # Documents differ in size, so a mean over examples is a ratio of two means over documents.
    influence = (model.sums - other.sums - value * sizes) / sizes.mean()
    if (documents := len(sizes)) > 1:
        # A large document pulls the mean towards itself, so its residual is too small (CR2 of Bell and McCaffrey 2002).
        influence = influence * np.sqrt((1 - 1 / documents) / (1 - sizes / sizes.sum()))
    return value, influence


def _stretch(influence: np.ndarray, deviations: np.ndarray, documents: float, confidence: float) -> float:
    """The factor for ``deviations`` (see the module), which are ``resampled(influence, ...)``.

    ``documents`` is as for ``half_length``.
    """
    low, high = quantile_interval(deviations, confidence)
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
