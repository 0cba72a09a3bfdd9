"""The fraction of a gain that is kept, and how sure that is: a paired bootstrap over examples and seeds.

A bootstrap of few seeds is too sure of itself: that of three is hardly wider than the range of their values. What two
kinds of students keep is therefore also compared seed by seed, with Student's t.
"""

from functools import lru_cache

import numpy as np
from scipy import stats

Interval = tuple[float, float]


def fraction_kept(
    baseline_losses: np.ndarray,
    teacher_losses: np.ndarray,
    student_losses: np.ndarray,
    *,
    resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float | None, Interval | None]:
    """(Q_student - Q_baseline) / (Q_teacher - Q_baseline), with its paired bootstrap interval.

    Args:
        baseline_losses, teacher_losses, student_losses: nats per target token of each test example,
            [examples] or [seeds, examples], the same examples in the same order for all three.
        resamples: bootstrap samples, over examples and over seeds where there are several.
        seed: of the bootstrap.
        confidence: of the interval, in (0, 1).

    Returns:
        The fraction (1.0 keeps all of the gain) and (low, high); None and None where the interval of the gain
        reaches 0, because a fraction of nothing says nothing. Neither is ever infinite or NaN.

    Raises:
        ValueError: the three do not have the same shape.
    """
    found = _fractions(baseline_losses, teacher_losses, student_losses, resamples, seed, confidence)
    return (None, None) if found is None else _if_finite(found[0], _interval(found[1], confidence))


def average_kept(
    baseline_losses: np.ndarray, teachers: list[np.ndarray], students: list[np.ndarray], *, resamples: int = 10_000
) -> tuple[float | None, Interval | None]:
    """The mean of ``fraction_kept`` over the teachers of several ratios that gain, with its 95 % interval.

    Args:
        teachers, students: one array as of ``fraction_kept`` per ratio. A resample is the same for all ratios, which
            share their seeds, examples and baseline.

    Returns:
        None and None where no teacher gains, or too many resamples have a teacher without a gain.
    """
    pairs = zip(teachers, students, strict=True)
    found = [_fractions(baseline_losses, teacher, student, resamples, 0, 0.95) for teacher, student in pairs]
    known = [one for one in found if one is not None]
    if not known:
        return None, None
    sampled = np.mean([one[1] for one in known], axis=0)
    return _if_finite(float(np.mean([one[0] for one in known])), _interval(sampled, 0.95))


def difference(first: np.ndarray, second: np.ndarray, *, confidence: float = 0.95) -> tuple[float, Interval]:
    """The mean of ``first - second``, [seeds] of at least 2, with Student's t interval of paired values."""
    values = np.asarray(first) - np.asarray(second)
    reach = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), (float(values.mean() - reach), float(values.mean() + reach))


def _fractions(
    baseline: np.ndarray, teacher: np.ndarray, student: np.ndarray, resamples: int, seed: int, confidence: float
) -> tuple[float, np.ndarray] | None:
    """The fraction kept, and that of every resample [resamples]; None where the gain is not sure.

    A resample without a gain counts as infinite, with the sign of what the student gains in it: a student below the
    baseline does not keep more for it.
    """
    losses = {"baseline": baseline, "teacher": teacher, "student": student}
    quality, sampled = _bootstrap(losses, resamples=resamples, seed=seed)
    gains = sampled["teacher"] - sampled["baseline"]
    if _interval(gains, confidence)[0] <= 0:
        return None
    own = sampled["student"] - sampled["baseline"]
    kept = np.divide(own, gains, out=np.copysign(np.inf, own), where=gains > 0)
    return (quality["student"] - quality["baseline"]) / (quality["teacher"] - quality["baseline"]), kept


def gain(
    baseline_losses: np.ndarray, teacher_losses: np.ndarray, *, resamples: int = 10_000, seed: int = 0
) -> tuple[float, Interval]:
    """Q_teacher - Q_baseline in nats per target token, with its 95 % paired bootstrap interval."""
    losses = {"baseline": baseline_losses, "teacher": teacher_losses}
    quality, sampled = _bootstrap(losses, resamples=resamples, seed=seed)
    return quality["teacher"] - quality["baseline"], _interval(sampled["teacher"] - sampled["baseline"], 0.95)


def _bootstrap(
    losses: dict[str, np.ndarray], *, resamples: int, seed: int
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Quality of each model, and its quality in every resample [resamples]: the same examples and seeds for all."""
    arrays = {name: np.atleast_2d(np.asarray(values, dtype=np.float64)) for name, values in losses.items()}
    shapes = {values.shape for values in arrays.values()}
    if len(shapes) != 1:
        raise ValueError(f"losses must have the same seeds and examples, not shapes {sorted(shapes)}")
    seeds, examples = shapes.pop()
    example_weights, seed_weights = _weights(examples, seeds, resamples, seed)
    sampled = {name: -((example_weights @ values.T) * seed_weights).sum(axis=1) for name, values in arrays.items()}
    return {name: -float(values.mean()) for name, values in arrays.items()}, sampled


@lru_cache(maxsize=1)
def _weights(examples: int, seeds: int, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """What each example [resamples, examples] and each seed [resamples, seeds] counts in each resample."""
    rng = np.random.default_rng(seed)
    of_examples = rng.multinomial(examples, np.full(examples, 1 / examples), size=resamples) / examples
    return of_examples, rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds


def _interval(samples: np.ndarray, confidence: float) -> Interval:
    with np.errstate(invalid="ignore"):  # between a number and infinity
        low, high = np.quantile(samples, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _if_finite(value: float, interval: Interval) -> tuple[float, Interval] | tuple[None, None]:
    return (value, interval) if np.isfinite(interval).all() else (None, None)
