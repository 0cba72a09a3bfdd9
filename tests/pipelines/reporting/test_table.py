"""The text, tables and plots of a report."""

import csv
import io
from typing import Any

import pytest
from rich.console import Console

from pipelines.reporting.plot import plot_report
from pipelines.reporting.table import report_csv, report_markdown, report_table


def row(**changes) -> dict:
    return {
        "ratio": "e4",
        "variant": None,
        "experts": 4,
        "seeds": [0],
        "teacher_parameters": 2_000_000,
        "student_parameters": 1_000_000,
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
        "gain_long": 0.01,
        "gain_long_interval": [-0.02, 0.04],
        "student_gain": 0.05,
        "student_gain_interval": [0.01, 0.09],
        "student_gain_long": -0.2,
        "student_gain_long_interval": [-0.25, -0.15],
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
        "levelling": {"change": 0.02, "smallest_gain": 0.1, "levelled_off": False},
        "ratios": list(rows),
        "averages": [
            {"variant": name, "fraction_kept": 0.25, "fraction_interval": [0.2, 0.3]}
            | {"fraction_kept_long": None, "fraction_long_interval": None}
            for name in dict.fromkeys(row["variant"] for row in rows)
        ],
        "differences": [],
        "data": {
            **{"name": "x", "digest": "d", "train_tokens": 5, "eval_split": "test", "test_examples": 300},
            **{
                "test_documents": 40,
                "effective_documents": 38.2,
                "too_few_documents": False,
                "largest_document": 0.031,
                "hardest": {"documents": 2, "tokens": 0.062, "loss": 0.117},
                "overlap": 0.1668,
                "unseen": 0.0,
            },
            **{"skipped_rows": 0, "unknown_share": 0.0, "restored_share": 1.0, "lost_share": 0.0},
        },
        "config": "table7",
        "versions": {"torch": "2.13.0"},
        "fingerprint": "f",
    }


def test_an_undefined_fraction_is_named():
    text = report_markdown(report(row()))
    assert "| e4 | 2.00M | 50% | -1.000 | -1.100 | 0.100 [0.050, 0.150] | 50% [40, 60] | undefined | – |" in text
    reason = "the gain over the long baseline has an interval that reaches 0"
    assert f"Undefined and excluded from means: e4 ({reason})." in text


def test_a_negative_gain_is_named():
    reason = "the teacher is worse than the long baseline"
    long = {"gain_long": -0.03, "gain_long_interval": [-0.05, -0.01], "fraction_long_undefined": reason}
    text = report_markdown(report(row(**long)))
    assert "| 50% [40, 60] | negative | – |" in text
    sentence = "Worse than the long baseline and excluded from means: the teacher of e4 (gain -0.030 [-0.050, -0.010])."
    assert sentence in text and f"- e4: {reason}." in text and "Undefined" not in text
    console = Console(width=80, file=io.StringIO())
    console.print(report_table(report(row(**long))))
    assert sentence in " ".join(console.file.getvalue().split())


def test_a_reason_that_depends_on_the_student_names_it():
    """Both variants have the same teacher. Its gain may be too close to 0 for one of them and not for the other."""
    close = {"fraction_kept": None, "fraction_interval": None, "fraction_undefined": "too close to 0"}
    reaching = {"fraction_long_undefined": "reaches 0"}
    text = report_markdown(report(row(variant="a", **reaching), row(variant="b", **close, **reaching)))
    assert "\n- e4: reaches 0.\n- e4 b: too close to 0.\n\n" in text


def test_a_figure_that_rounds_to_zero_has_no_sign():
    small = {"student_gain": -0.0002, "student_gain_interval": [-0.0004, 0.0003]}
    text = report_markdown(report(row(fraction_kept=-0.002, fraction_interval=[-0.004, 0.003], **small)))
    assert "| 0% [0, 0] |" in text and "| 0.000 [0.000, 0.000] |" in text


def test_a_student_below_the_baseline_is_named():
    text = report_markdown(report(row(student_quality=-1.25, fraction_kept=-0.5, fraction_interval=[-0.6, -0.4])))
    assert "-50% [-60, -40]" in text and "Below the baseline: the student of e4 by 0.0500 nats." in text


def _figures(monkeypatch) -> list[Any]:
    """A list that gets each figure in place of a file."""
    drawn: list[Any] = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: drawn.append(figure))
    return drawn


@pytest.mark.parametrize("gains,word", [([-0.1, -0.2], "negative"), ([-0.1, 0.001], "undefined")])
def test_the_legend_of_the_plot_names_an_absent_fraction(gains, word, tmp_path, monkeypatch):
    drawn = _figures(monkeypatch)
    rows = [
        row(ratio=f"e{n}", experts=n, gain_long=gain, gain_long_interval=[gain - 0.01, gain + 0.01])
        for n, gain in zip((4, 8), gains, strict=True)
    ]
    plot_report(report(*rows), tmp_path / "report.png")
    labels = [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()]
    assert f"against the long baseline: {word}" in labels


def test_fractions_far_below_zero_do_not_set_the_limits_of_the_plot(tmp_path, monkeypatch):
    drawn = _figures(monkeypatch)
    far = {"fraction_kept_long": -9.0, "fraction_long_interval": [-40.0, -3.0]}
    rows = [row(ratio=f"e{n}", experts=n, variant=name, **far) for n in (4, 8) for name in ("best", "paper")]
    plot_report(report(*rows), tmp_path / "report.png")
    kept = drawn[0].axes[0]
    low, high = kept.get_ylim()
    assert -120 < low < -90 and 60 < high < 80 and "cut" in kept.get_ylabel()


def test_intervals_are_given_with_their_numbers_of_documents_and_seeds():
    alone = report_markdown(report(row(seeds=[0])))
    assert alone.count("Intervals resample 40 documents and 1 seed, so they do not include the variation") == 2
    assert "300 examples from 40 documents of the test split (the largest has 3.1% of the examples)" in alone
    assert "Intervals resample 40 documents and 3 seeds." in report_markdown(report(row(seeds=[0, 1, 2])))
    assert "Overlap: 16.7% of the test text also occurs in the training text, in runs of 16 tokens or more." in alone


def test_the_report_warns_of_intervals_of_few_documents():
    few = report(row(seeds=[0, 1]))
    few["data"] |= {"test_documents": 12, "too_few_documents": True}
    assert (
        "resample 40 documents and 2 seeds; two seeds say little about the variation between seeds."
        in report_markdown(report(row(seeds=[0, 1])))
    )
    uneven = report(row())
    uneven["data"] |= {"effective_documents": 10.5, "too_few_documents": True}
    assert "40 documents and 1 seed, worth 10 of equal size; with fewer than 30 documents, they" in report_markdown(
        uneven
    )
    sentence = "Intervals resample 12 documents and 2 seeds; with fewer than 30 documents, they cannot be trusted."
    assert sentence in report_markdown(few)
    console = Console(width=80, file=io.StringIO())
    console.print(report_table(few))
    assert sentence in " ".join(console.file.getvalue().split())


def test_seeds_are_compared_one_by_one():
    assert "seed by seed" not in report_markdown(report(row(seeds=[0])))
    one = {"variant": "mine", "to": "paper", "difference": 0.5, "interval": [0.21, 0.79], "by_seed": [0.4, 0.5, 0.6]}
    several = report(row(variant="paper", seeds=[0, 1, 2]), row(variant="mine", seeds=[0, 1, 2])) | {
        "differences": [one]
    }
    assert "| mine - paper | +50 [+21, +79] | +40, +50, +60 |" in report_markdown(several)


LONGER, SHORTER = {"student_steps": 20}, {"teacher_steps": 15}
# A loaded teacher, with as many steps of the student as the long baseline has.
LOADED = {"teacher_steps": None, "teacher_tokens": None, "teacher_flops": None, "student_steps": 30}


@pytest.mark.parametrize(
    "rows,sentence",
    [
        ([row(), row(ratio="e8")], "after 30, as many as teacher and student together. "),
        ([row(), row(ratio="e8", **LONGER)], "after 30, as many as teacher and student together (except 40 for e8). "),
        ([row(**LONGER)], "after 30 (teacher and student together: 40 for e4). "),
        (
            [row(**SHORTER), row(ratio="e8", **LONGER)],
            "after 30 (teacher and student together: 25 for e4, 40 for e8). ",
        ),
        (
            [row(variant="a"), row(variant="b", **LONGER), row(ratio="e8", variant="a", **SHORTER)]
            + [row(ratio="e8", variant="b")],
            "after 30, as many as teacher and student together (except 40 for e4 b, 25 for e8 a). ",
        ),
        ([row(**LOADED), row(ratio="e8", **LOADED)], "after 30 (teacher and student together: unknown). "),
        (
            [row(), row(ratio="e8", **LOADED)],
            "after 30, as many as teacher and student together (except unknown for e8). ",
        ),
    ],
)
def test_rows_with_other_steps_than_the_long_baseline_are_named(rows, sentence):
    text = report_markdown(report(*rows))
    assert sentence in text and text.count("together") == 1


def test_the_table_has_a_column_for_the_papers_figures():
    assert report_markdown(report(row(ratio="e16", experts=16))).count("| 37% |") == 1
    ladder = report_markdown(report(*(row(variant=name) for name in ("soft-labels", "hard-labels", "mine"))))
    assert "| e4 | soft-labels |" in ladder and "| undefined | 3% |" in ladder and "| undefined | <0 |" in ladder
    assert "| undefined | – |" in ladder


def test_the_table_fits_into_80_columns():
    ladder = [
        row(ratio="e16", variant="gentle-hard-labels", fraction_interval=[-1.04, 1.06], gain=1.0) for _ in range(2)
    ]
    for rows in ([row()], ladder):
        console = Console(width=80, file=io.StringIO())
        console.print(report_table(report(*rows)))
        drawn = console.file.getvalue()
        assert "…" not in drawn and max(map(len, drawn.splitlines())) <= 80
        assert "undefined" in drawn and "[0.050, 0.150]" in drawn


def test_students_of_another_size_have_a_column_and_the_baseline_stays_the_same():
    same = report_markdown(report(row(variant="a"), row(variant="b")))
    assert "Student and baseline have 1.00M parameters." in same and "| student |" not in same
    wide = {"student_parameters": 1_250_000, "compression": 0.375}
    rows = [row(ratio=ratio, **of) for ratio in ("e4", "e8") for of in ({"variant": "a"}, {"variant": "wide"} | wide)]
    text = report_markdown(report(*rows))
    assert "| ratio | variant | size | student | compression |" in text
    assert "| e4 | a | 2.00M | 1.00M | 50% |" in text and "| e8 | wide | 2.00M | 1.25M | 38% |" in text
    assert "| mean | wide |  |  |  |  |  |  | 25% [20, 30] |" in text
    sentence = (
        "Students of every size are compared with a baseline of 1.00M parameters; set baseline.d_ff to compare them "
        "with a dense model of their width."
    )
    assert f"Size is the teacher's. {sentence}" in text and "Student and baseline have" not in text
    drawn = drawn_table(report(*rows, row(variant="x4-one-decoder-layer", **wide)))
    assert "Size is the teacher's" not in drawn  # its column is left out
    assert drawn.count("1.25M") == 3 and max(map(len, drawn.splitlines())) <= 80 and "…" not in drawn


def test_several_ratios_have_a_mean():
    assert "| mean |" not in report_markdown(report(row(variant="a"), row(variant="b")))
    several = report_markdown(report(row(), row(ratio="e8", experts=8)))
    assert "| mean |  |  |  |  |  | 25% [20, 30] | undefined | 31% |" in several
    variants = [row(ratio=ratio, variant=name) for ratio in ("e4", "e8") for name in ("a", "b")]
    assert "| mean | b |  |  |  |  |  | 25% [20, 30] | undefined | – |" in report_markdown(report(*variants))


def test_the_csv_has_every_figure_once():
    text = report_csv(report(row(seeds=[0, 1], gain_undefined="why"), row(ratio="e8, old")))
    first, second = csv.DictReader(io.StringIO(text))
    assert (first["ratio"], first["seeds"], second["ratio"]) == ("e4", "0 1", "e8, old")
    assert (first["gain_low"], first["gain_high"], first["fraction_long_low"]) == ("0.05", "0.15", "")
    assert first["long_baseline_quality"] == "-0.9" and "gain_undefined" not in first
    assert (first["test_documents"], first["test_examples"], first["overlap"]) == ("40", "300", "0.1668")
    assert (first["config"], first["version_torch"]) == ("table7", "2.13.0")


def test_the_report_lists_the_training_of_every_model():
    text = report_markdown(report(row(variant="a"), row(variant="b", student_tokens=5000)))
    assert "| long baseline | 30 | 3,000 | 2.40e+09 |" in text and text.count("| teacher e4 |") == 1
    assert "| student e4 a | 10 | 1,000 |" in text and "| student e4 b | 10 | 5,000 |" in text
    loaded = report_markdown(report(row(teacher_tokens=None, teacher_flops=None)))
    assert "| teacher e4 | unknown | unknown | unknown |" in loaded


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
    """If a teacher gains almost nothing over the long baseline, a fraction of this gain may be very large."""
    drawn = _figures(monkeypatch)
    far = {"fraction_kept_long": -1.3, "fraction_long_interval": [-31.0, -0.2]}
    plot_report(report(row(variant="a", **far), row(variant="b", **far)), tmp_path / "report.png")
    (low, high), label = drawn[0].axes[0].get_xlim(), drawn[0].axes[0].get_xlabel()
    assert -50 < low < 0 and high < 150 and label.endswith("longer intervals are cut")


def test_the_report_states_losses_of_the_corpus():
    whole = report(row())
    assert "skipped" not in report_markdown(whole) and "loses" not in report_markdown(whole)
    lost = {"skipped_rows": 1234, "unknown_share": 0.043, "restored_share": 0.0, "lost_share": 0.031}
    text = report_markdown({**whole, "data": {**whole["data"], **lost}})
    assert "Bad rows of the corpus that were skipped: 1,234. The tokenizer loses text: 4.3% of the tokens" in text
    assert "decoding loses 3.1% of the characters" in text


def task_report(metric="exact_match", *rows: dict, **truncated: dict) -> dict:
    """A report on a task with one metric, with no groups."""
    interval = {
        "gain": 0.2,
        "gain_interval": [0.1, 0.3],
        "fraction_interval": [0.4, 0.8],
        "fraction_long_interval": None,
    }
    values = {"better": "higher", "baseline": 0.1, "long_baseline": 0.2, "teacher": 0.3, "student": 0.221}
    values |= {**interval, "fraction_kept": 0.605, "fraction_kept_long": None, "student_by_seed": [0.221]}
    known = report(*(one | {"metrics": {metric: values}} for one in rows or [row()]))
    facts = {"truncated_inputs": {"train": 0.0, "test": 0.0}, "truncated_targets": {"train": 0.0, "test": 0.0}}
    return known | {"examples": [], "data": {**known["data"], **facts, "remarks": [], **truncated}}


def drawn_table(of: dict) -> str:
    console = Console(width=80, file=io.StringIO())
    console.print(report_table(of))
    return console.file.getvalue()


@pytest.mark.parametrize("metric,shown", [("exact_match", "22.1%"), ("chrf", "0.2"), ("error_rate", "22.1%")])
def test_the_terminal_shows_the_first_metric_of_a_task(metric, shown):
    drawn = drawn_table(task_report(metric, row(), row(ratio="e16", experts=16)))
    assert max(map(len, drawn.splitlines())) <= 80 and "…" not in drawn
    last = [line.split()[-1] for line in drawn.splitlines() if line.split()]
    assert last.count(shown) == 2 and drawn.count("60% kept") == 2 and metric.partition("_")[0] in drawn
    assert " 31%" not in drawn and "Paper:" not in drawn  # figures of the paper for span corruption
    assert "The paper's student of a fine-tuned teacher keeps 30% of its gain" in " ".join(drawn.split())


def test_a_metric_that_does_not_fit_is_left_out_of_the_terminal():
    """Nothing is cut, neither with the metric nor without it."""
    long = {"gain": -10.1, "gain_interval": [-10.123, 10.567], "fraction_interval": [-1.31, 15.2]}
    wide = row(variant="gentle-hard-labels", **long)
    for one, fits in ((row(**long), True), (wide, False)):
        drawn = drawn_table(task_report("exact_match", one))
        assert ("exact" in drawn) == fits and ("60% kept" in drawn) == fits and "…" not in drawn
        assert all(text in drawn for text in ("[-10.123, 10.567]", "[-131, 1520]", "undefined", "student"))
        assert max(map(len, drawn.splitlines())) <= 80
    assert "| `exact_match` | e4 gentle" in report_markdown(task_report("exact_match", wide))


def test_the_markdown_of_a_task_states_what_was_truncated():
    whole = report_markdown(task_report())
    assert "Overlap: 16.7% of the test targets are also targets of training examples." in whole
    assert "truncated" not in whole and "| paper |" not in whole and "in runs of 16 tokens" not in whole
    cut = task_report(truncated_inputs={"train": 0.25, "test": 0.0}, truncated_targets={"train": 0.0, "test": 0.031})
    assert "truncated: 25.0% of the training inputs, 3.1% of the test targets." in report_markdown(cut)


def test_the_csv_of_a_task_has_its_metrics():
    (line,) = csv.DictReader(io.StringIO(report_csv(task_report("chrf"))))
    assert (line["chrf_student"], line["chrf_gain_low"], line["chrf_fraction_high"]) == ("0.221", "0.1", "0.8")
    assert line["chrf_fraction_kept_long"] == "" and line["gain"] == "0.1"
