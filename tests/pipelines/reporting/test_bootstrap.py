"""Fractions and intervals against Student's t of SciPy, and against simulated reports with a known truth."""

import numpy as np
import pytest
from scipy import stats

from benchmarks.coverage import Case, coverage
from pipelines.reporting import fraction_kept as public
from pipelines.reporting.bootstrap import (
    average_kept,
    difference,
    effective_documents,
    fraction_kept,
    gain,
    half_length,
)


@pytest.fixture
def losses():
    """Losses of examples of very different difficulty. The teacher gains 0.2, and the student keeps 30 % of it."""
    rng = np.random.default_rng(0)
    baseline = rng.normal(4.0, 1.0, 400)
    teacher = baseline - 0.2 + rng.normal(0, 0.1, 400)
    student = baseline - 0.06 + rng.normal(0, 0.1, 400)
    return baseline, teacher, student


def test_the_fraction_agrees_with_table_7():
    """Teacher -1.444, baseline -1.636, student -1.579: 30 %."""
    fraction, (low, high) = fraction_kept(np.full(5, 1.636), np.full(5, 1.444), np.full(5, 1.579))
    assert fraction == pytest.approx(0.057 / 0.192) and round(fraction, 2) == 0.30
    assert low == pytest.approx(fraction) and high == pytest.approx(fraction)


def test_resamples_without_a_gain_give_finite_intervals():
    """With one of four seeds, teacher and student gain almost nothing. Resamples of this seed alone have no gain."""
    teacher = np.full((4, 3), 3.0)
    baseline = teacher + np.array([0.1, 0.4, 0.5, 0.6])[:, None]
    student = teacher + np.array([0.02, 0.1, 0.1, 0.1])[:, None]
    fraction, interval = fraction_kept(baseline, teacher, student)
    assert fraction == pytest.approx(0.32 / 0.4) and np.isfinite(interval).all()


def test_the_interval_is_paired(losses):
    """Examples vary by 1.0 and models by 0.1. An unpaired interval of a gain of 0.2 would contain 0."""
    baseline, teacher, student = losses
    value, (low, high) = gain(baseline, teacher)
    assert value == pytest.approx((baseline - teacher).mean())
    assert 0.005 < value - low < 0.015 and 0.005 < high - value < 0.015
    fraction, (low, high) = fraction_kept(baseline, teacher, student)
    assert low < 0.3 < high and low < fraction < high and high - low < 0.15


CASES = [Case(30, 1, ragged=True), Case(30, 3, 0.02, of_both=0.02), Case(30, 5, 0.02, of_both=0.02)]
MORE = [
    *(Case(30, 1), Case(60, 1, of_document=0.2), Case(30, 3, of_both=0.02), Case(60, 3, 0.05)),
    *(Case(60, 3, 0.02, of_both=0.02, ragged=True), Case(100, 5, 0.05, of_document=0.2)),
]


@pytest.mark.parametrize("case", [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in MORE)], ids=str)
def test_intervals_have_their_nominal_coverage(case):
    """With correlated examples in a document, intervals over documents have it, and intervals over examples do not."""
    found = coverage(case, repeats=400)
    assert 0.92 <= found["gain"][0] <= 0.98 and 0.92 <= found["kept"][0] <= 0.98
    if case.seeds == 1:
        assert found["kept, by examples"][0] < found["kept"][0] - 0.02


@pytest.mark.parametrize("seeds,documents", [(1, 30), (3, 30), (6, 1), (2, 12)])
def test_the_interval_of_a_gain_has_the_length_of_students_t(seeds, documents):
    """One seed, or seeds with equal documents, are one sample, for which SciPy gives the interval."""
    rng = np.random.default_rng(0)
    by_seed, by_document = rng.normal(0.3, 0.1, (seeds, 1)), np.zeros(documents)
    if seeds == 1:
        by_seed, by_document = np.array([[0.3]]), rng.normal(0, 0.1, documents)
    values = by_seed + by_document
    sample = values.ravel() if seeds == 1 else by_seed.ravel()
    low, high = stats.ttest_1samp(sample, 0).confidence_interval(0.95)
    assert half_length(values) == pytest.approx((high - low) / 2)
    value, found = gain(np.full(values.shape, 4.0), 4.0 - values)
    assert value == pytest.approx(sample.mean()) and found[1] - found[0] == pytest.approx(high - low)


def test_the_length_does_not_count_the_interaction_of_seeds_and_documents_twice():
    """Against the variance of many samples, with so many seeds and documents that Student's t is nearly normal."""
    rng, means, lengths = np.random.default_rng(1), [], []
    for _ in range(500):
        values = rng.normal(0, 0.1, (60, 1)) + rng.normal(0, 0.1, 80) + rng.normal(0, 2.0, (60, 80))
        means.append(values.mean())
        lengths.append(half_length(values))
    expected = np.sqrt(0.1**2 / 60 + 0.1**2 / 80 + 2.0**2 / 4800)
    assert np.std(means) == pytest.approx(expected, rel=0.1)
    assert np.mean(lengths) == pytest.approx(1.98 * expected, rel=0.05)
    assert np.mean(lengths) < 0.85 * 1.98 * np.sqrt(expected**2 + 2.0**2 / 4800)


def test_whole_documents_are_resampled():
    """Ten copies of each example in its document do not shorten the interval."""
    rng = np.random.default_rng(5)
    baseline, teacher, student = (rng.normal(mean, 0.1, 40) for mean in (4.0, 3.7, 3.85))
    once = fraction_kept(baseline, teacher, student)
    copies = [np.repeat(losses, 10) for losses in (baseline, teacher, student)]
    documents = np.repeat([f"file {number}" for number in range(40)], 10)
    assert public(*copies, documents=documents)[0] == pytest.approx(once[0])
    low, high = public(*copies, documents=documents)[1]
    assert high - low == pytest.approx(once[1][1] - once[1][0], rel=0.1)
    narrow_low, narrow_high = public(*copies)[1]
    assert narrow_high - narrow_low < 0.5 * (high - low)
    shuffled = rng.permutation(400)
    moved = public(*(losses[shuffled] for losses in copies), documents=documents[shuffled])
    assert moved[0] == pytest.approx(once[0]) and moved[1] == pytest.approx((low, high))


def test_one_document_and_one_seed_give_no_fraction():
    losses = [np.full(8, value) for value in (4.0, 3.7, 3.9)]
    assert fraction_kept(*losses, documents=np.zeros(8)) == (None, None)
    assert fraction_kept(*(one[:1] for one in losses)) == (None, None)
    assert gain(losses[0], losses[1], documents=np.zeros(8))[0] == pytest.approx(0.3)
    rng = np.random.default_rng(0)
    several = [np.repeat(value + rng.normal(0, 0.01, (5, 1)), 8, axis=1) for value in (4.0, 3.7, 3.9)]
    fraction, (low, high) = fraction_kept(*several, documents=np.zeros(8))  # five seeds give one
    assert low < fraction < high


def test_the_mean_of_a_student_above_and_one_below_the_baseline_is_defined():
    """In the few resamples without a gain, one fraction is plus infinity and the other minus infinity."""
    rng = np.random.default_rng(0)
    baseline = rng.normal(4.0, 1.0, 60)
    noise = rng.normal(0, 0.2, 60)
    teacher = baseline - 0.09 - (noise - noise.mean())
    above, below = baseline - 0.09 - 0.2 * noise, baseline + 0.06 - 0.2 * noise
    each = [fraction_kept(baseline, teacher, one) for one in (above, below)]
    assert all(fraction is not None for fraction, _ in each)
    mean, (low, high) = average_kept(baseline, [teacher, teacher], [above, below])
    assert mean == pytest.approx((each[0][0] + each[1][0]) / 2) and low < mean < high


def test_a_dominant_document_lowers_the_effective_number():
    assert effective_documents(np.full(40, 7)) == pytest.approx(40)
    assert effective_documents(np.array([*[4] * 99, 170])) < 11


@pytest.mark.parametrize("options", [{"resamples": 0}, {"confidence": 1.0}, {"confidence": 0.0}, {"seed": -1}])
def test_options_out_of_range_are_refused(losses, options):
    with pytest.raises(ValueError, match="; it must be a "):
        fraction_kept(*losses, **options)


def test_losses_of_wrong_shape_are_refused():
    for shape in ((2, 3, 4), (0,), (2, 0)):
        with pytest.raises(ValueError, match="same seeds and examples, at least one"):
            fraction_kept(*[np.ones(shape)] * 3)


def test_documents_that_do_not_belong_to_the_examples_are_refused(losses):
    with pytest.raises(ValueError, match="documents must have one entry for each of 400 examples"):
        fraction_kept(*losses, documents=np.arange(10))


def test_seeds_widen_the_interval():
    rng = np.random.default_rng(2)
    baseline = np.full((3, 200), 4.0) + rng.normal(0, 0.01, (3, 200))
    teacher = baseline - 0.2
    student = baseline - np.array([[0.02], [0.06], [0.10]])
    fraction, (low, high) = fraction_kept(baseline, teacher, student)
    assert fraction == pytest.approx(0.3) and low < 0.2 and high > 0.4
    _, (narrow_low, narrow_high) = fraction_kept(baseline[1], teacher[1], student[1])
    assert narrow_high - narrow_low < high - low


def test_a_difference_over_seeds_is_that_of_a_paired_t_test():
    first, second = np.array([0.5, 0.7, 0.4]), np.array([0.1, 0.2, -0.2])
    mean, interval = difference(first, second)
    reference = stats.ttest_rel(first, second)
    assert mean == pytest.approx(0.5)
    assert interval == pytest.approx(tuple(reference.confidence_interval(0.95)))


def test_resamples_without_a_gain_do_not_help_a_student_below_the_baseline():
    """Gains of two standard errors, and students below the baseline. No resample makes a negative ratio positive."""
    rng = np.random.default_rng(4)
    baseline = rng.normal(4.0, 1.0, 400)
    noise = rng.normal(0, 0.2, (5, 400))
    teachers = [baseline - 0.022 - one + one.mean() for one in noise]
    students = [baseline + 0.022] * 5
    for teacher, student in zip(teachers, students, strict=True):
        fraction, (low, high) = fraction_kept(baseline, teacher, student)
        assert fraction == pytest.approx(-1) and high < 0
    assert average_kept(baseline, teachers, students) == (None, None)  # in many resamples one teacher has no gain


def test_a_gain_that_reaches_zero_makes_the_fraction_undefined(losses):
    baseline, _, student = losses
    rng = np.random.default_rng(3)
    assert fraction_kept(baseline, baseline + rng.normal(0, 0.1, 400), student) == (None, None)
    assert fraction_kept(baseline, baseline + 0.1, student) == (None, None)


def test_the_mean_covers_only_ratios_with_a_gain(losses):
    baseline, teacher, student = losses
    half = baseline + 0.5 * (teacher - baseline)
    mean, (low, high) = average_kept(baseline, [teacher, teacher, baseline + 0.1], [student, half, student])
    one, (one_low, one_high) = fraction_kept(baseline, teacher, student)
    assert mean == pytest.approx((one + 0.5) / 2)
    assert high - low == pytest.approx((one_high - one_low) / 2)  # the second fraction is always half of the first
    assert average_kept(baseline, [baseline + 0.1], [student]) == (None, None)


def test_the_result_depends_only_on_the_arguments(losses):
    assert fraction_kept(*losses) == fraction_kept(*losses)
    assert fraction_kept(*losses, seed=1) != fraction_kept(*losses)


def test_models_evaluated_on_different_examples_are_refused(losses):
    baseline, teacher, student = losses
    with pytest.raises(ValueError, match="same seeds and examples"):
        fraction_kept(baseline, teacher, student[:-1])
