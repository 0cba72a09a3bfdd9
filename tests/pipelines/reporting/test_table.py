import csv
import io

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from pipelines.bootstrap import average_kept, difference, fraction_kept, gain
from pipelines.plot import plot_report
from pipelines.table import comma_separated, markdown, table


@pytest.fixture
def losses():
    """Examples of very different difficulty, a teacher that gains 0.2 and a student that keeps 30 % of it."""
    rng = np.random.default_rng(0)
    baseline = rng.normal(4.0, 1.0, 400)
    teacher = baseline - 0.2 + rng.normal(0, 0.1, 400)
    student = baseline - 0.06 + rng.normal(0, 0.1, 400)
    return baseline, teacher, student


def test_the_fraction_is_that_of_table_7():
    """Teacher -1.444, baseline -1.636, student -1.579: 30 %."""
    fraction, (low, high) = fraction_kept(np.full(5, 1.636), np.full(5, 1.444), np.full(5, 1.579))
    assert fraction == pytest.approx(0.057 / 0.192) and round(fraction, 2) == 0.30
    assert low == pytest.approx(fraction) and high == pytest.approx(fraction)


def test_resamples_without_a_gain_make_no_interval_of_no_numbers():
    """One of four seeds gains nothing at all, and its student keeps nothing of it: some resamples hold it alone."""
    teacher = np.full((4, 3), 3.0)
    baseline = teacher + np.array([0.0, 0.4, 0.5, 0.6])[:, None]
    student = teacher + np.array([0.0, 0.1, 0.1, 0.1])[:, None]
    fraction, interval = fraction_kept(baseline, teacher, student)
    assert fraction == pytest.approx((0.375 - 0.075) / 0.375) and np.isfinite(interval).all()


def test_the_interval_is_paired(losses):
    """Examples vary by 1.0 and models by 0.1: unpaired, nothing could be said of a gain of 0.2."""
    baseline, teacher, student = losses
    value, (low, high) = gain(baseline, teacher)
    assert value == pytest.approx((baseline - teacher).mean())
    assert 0.005 < value - low < 0.015 and 0.005 < high - value < 0.015
    fraction, (low, high) = fraction_kept(baseline, teacher, student)
    assert low < 0.3 < high and low < fraction < high and high - low < 0.15


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        difficulty = rng.normal(4.0, 1.0, 150)
        teacher = difficulty - 0.3 + rng.normal(0, 0.2, 150)
        student = difficulty - 0.12 + rng.normal(0, 0.2, 150)
        _, (low, high) = fraction_kept(difficulty, teacher, student, resamples=400)
        covered += low <= 0.4 <= high
    assert 175 <= covered <= 199


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


def test_a_student_below_the_baseline_keeps_no_more_where_a_resample_has_no_gain():
    """Gains at two standard errors, and students that lose: no resample turns the loss of two into something kept."""
    rng = np.random.default_rng(4)
    baseline = rng.normal(4.0, 1.0, 400)
    noise = rng.normal(0, 0.2, (5, 400))
    teachers = [baseline - 0.022 - one + one.mean() for one in noise]
    students = [baseline + 0.022] * 5
    for teacher, student in zip(teachers, students, strict=True):
        fraction, (low, high) = fraction_kept(baseline, teacher, student)
        assert fraction == pytest.approx(-1) and high < 0
    assert average_kept(baseline, teachers, students) == (None, None)  # in many a resample one gains nothing


def test_a_gain_that_reaches_zero_makes_the_fraction_undefined(losses):
    baseline, _, student = losses
    rng = np.random.default_rng(3)
    assert fraction_kept(baseline, baseline + rng.normal(0, 0.1, 400), student) == (None, None)
    assert fraction_kept(baseline, baseline + 0.1, student) == (None, None)


def test_the_mean_over_ratios_is_over_those_that_gain(losses):
    baseline, teacher, student = losses
    half = baseline + 0.5 * (teacher - baseline)
    mean, (low, high) = average_kept(baseline, [teacher, teacher, baseline + 0.1], [student, half, student])
    one, (one_low, one_high) = fraction_kept(baseline, teacher, student)
    assert mean == pytest.approx((one + 0.5) / 2)
    assert high - low == pytest.approx((one_high - one_low) / 2)  # the second is half in every resample
    assert average_kept(baseline, [baseline + 0.1], [student]) == (None, None)


def test_the_result_does_not_depend_on_anything_but_its_arguments(losses):
    assert fraction_kept(*losses) == fraction_kept(*losses)
    assert fraction_kept(*losses, seed=1) != fraction_kept(*losses)


def test_models_measured_on_different_examples_are_refused(losses):
    baseline, teacher, student = losses
    with pytest.raises(ValueError, match="same seeds and examples"):
        fraction_kept(baseline, teacher, student[:-1])


def row(**changes) -> dict:
    return {
        "ratio": "e4",
        "variant": None,
        "experts": 4,
        "seeds": [0],
        "teacher_parameters": 2_000_000,
        "compression": 0.5,
        "teacher_quality": -1.0,
        "student_quality": -1.1,
        "teacher_steps": 20,
        "teacher_tokens": 2000,
        "teacher_flops": 3e9,
        "student_steps": 10,
        "student_tokens": 1000,
        "student_flops": 1e9,
        "gain": 0.1,
        "gain_interval": [0.05, 0.15],
        "fraction_kept": 0.5,
        "fraction_interval": [0.4, 0.6],
        "fraction_kept_long": None,
        "fraction_long_interval": None,
        **changes,
    }


def report(*rows: dict) -> dict:
    return {
        "baseline": {"quality": -1.2, "parameters": 1_000_000, "steps": 10, "tokens": 1000, "flops": 8e8},
        "long_baseline": {"quality": -0.9, "steps": 30, "tokens": 3000, "flops": 2.4e9},
        "ratios": list(rows),
        "averages": [
            {"variant": name, "fraction_kept": 0.25, "fraction_interval": [0.2, 0.3]}
            | {"fraction_kept_long": None, "fraction_long_interval": None}
            for name in dict.fromkeys(row["variant"] for row in rows)
        ],
        "differences": [],
        "data": {"name": "x", "digest": "d", "train_tokens": 5, "test_examples": 3, "test_documents": 1},
        "fingerprint": "f",
    }


def test_an_undefined_fraction_is_said_to_be_undefined():
    text = markdown(report(row()))
    assert "| e4 | 2.00M | 50% | -1.000 | -1.100 | 0.100 [0.050, 0.150] | 50% [40, 60] | undefined | – |" in text
    assert "Undefined, and in no mean, for e4: the gain over the long baseline has an interval that reaches 0." in text


def test_few_seeds_are_said_to_be_few_and_are_compared_one_by_one():
    alone = markdown(report(row(seeds=[0])))
    assert "over examples.\n" in alone and "seed by seed" not in alone
    one = {"variant": "mine", "to": "paper", "difference": 0.5, "interval": [0.21, 0.79], "by_seed": [0.4, 0.5, 0.6]}
    several = report(row(variant="paper", seeds=[0, 1, 2]), row(variant="mine", seeds=[0, 1, 2])) | {
        "differences": [one]
    }
    assert "over examples and seeds; those of 3 seeds are hardly wider" in markdown(several)
    assert "| mine to paper | +50 [+21, +79] | +40, +50, +60 |" in markdown(several)


def test_a_student_that_takes_more_than_the_long_baseline_is_named():
    text = markdown(report(row(variant="paper"), row(variant="from-scratch", student_steps=20)))
    assert "as many as teacher and student take together (not for from-scratch, which takes more)." in text


def test_the_papers_figures_stand_beside_ours():
    assert markdown(report(row(ratio="e16", experts=16))).count("| 37% |") == 1
    ladder = markdown(report(*(row(variant=name) for name in ("soft-labels", "hard-labels", "mine"))))
    assert "| e4 | soft-labels |" in ladder and "| undefined | 3% |" in ladder and "| undefined | <0 |" in ladder
    assert "| undefined | – |" in ladder


def test_nothing_of_the_table_is_cut_off_in_80_columns():
    ladder = [
        row(ratio="e16", variant="gentle-hard-labels", fraction_interval=[-1.04, 1.06], gain=1.0) for _ in range(2)
    ]
    for rows in ([row()], ladder):
        console = Console(width=80, file=io.StringIO())
        console.print(table(report(*rows)))
        drawn = console.file.getvalue()
        assert "…" not in drawn and max(map(len, drawn.splitlines())) <= 80
        assert "undefined" in drawn and "[0.050, 0.150]" in drawn


def test_several_ratios_have_a_mean():
    assert "| mean |" not in markdown(report(row(variant="a"), row(variant="b")))
    several = markdown(report(row(), row(ratio="e8", experts=8)))
    assert "| mean |  |  |  |  |  | 25% [20, 30] | undefined | 31% |" in several
    variants = [row(ratio=ratio, variant=name) for ratio in ("e4", "e8") for name in ("a", "b")]
    assert "| mean | b |  |  |  |  |  | 25% [20, 30] | undefined | – |" in markdown(report(*variants))


def test_the_csv_has_every_figure_once():
    text = comma_separated(report(row(seeds=[0, 1], gain_undefined="why"), row(ratio="e8, old")))
    first, second = csv.DictReader(io.StringIO(text))
    assert (first["ratio"], first["seeds"], second["ratio"]) == ("e4", "0 1", "e8, old")
    assert (first["gain_low"], first["gain_high"], first["fraction_long_low"]) == ("0.05", "0.15", "")
    assert first["long_baseline_quality"] == "-0.9" and "gain_undefined" not in first


def test_the_report_says_what_every_model_has_seen():
    text = markdown(report(row(variant="a"), row(variant="b", student_tokens=5000)))
    assert "| long baseline | 30 | 3,000 | 2.40e+09 |" in text and text.count("| teacher e4 |") == 1
    assert "| student e4 a | 10 | 1,000 |" in text and "| student e4 b | 10 | 5,000 |" in text
    loaded = markdown(report(row(teacher_tokens=None, teacher_flops=None)))
    assert "| teacher e4 | elsewhere | elsewhere | elsewhere |" in loaded


@pytest.mark.parametrize(
    "rows",
    [
        [row()],
        [row(), row(ratio="e8", experts=8, fraction_kept=None, fraction_interval=None)],
        [row(variant=name) for name in ("soft-labels", "mine")],
        [row(ratio=f"e{n}", experts=n, variant=name) for n in (4, 8) for name in ("a", "b")],
    ],
)
def test_every_kind_of_report_is_drawn(rows, tmp_path):
    plot_report(report(*rows), tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_bars_stay_readable_beside_an_interval_of_thousands_of_per_cent(tmp_path, monkeypatch):
    """Where a teacher gains next to nothing over the long baseline, the fraction of that may be anything."""
    from matplotlib import pyplot

    drawn = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    far = {"fraction_kept_long": -1.3, "fraction_long_interval": [-31.0, -0.2]}
    plot_report(report(row(variant="a", **far), row(variant="b", **far)), tmp_path / "report.png")
    (low, high), label = drawn[0].axes[0].get_xlim(), drawn[0].axes[0].get_xlabel()
    monkeypatch.undo()
    pyplot.close(drawn[0])
    assert -50 < low < 0 and high < 150 and label.endswith("what is longer is cut")
