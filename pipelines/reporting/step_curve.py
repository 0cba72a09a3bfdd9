"""The fraction kept against the number of steps that the student takes: values of report.json, steps.csv, steps.png."""

from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.reporting.cells import csv_text, flat_row
from pipelines.reporting.comparison import Figure, Models, compared, mean_quality, student_gains
from pipelines.reporting.plot import STYLES, new_figure, save_figure
from pipelines.reporting.verdict import AGAINST, title
from pipelines.tracking.tracked_run import COLOURS

_SHOWN = (
    "student_quality",
    "fraction_kept",
    "fraction_interval",
    "fraction_kept_long",
    "fraction_long_interval",
    "student_gain",
    "student_gain_interval",
    "student_gain_long",
    "student_gain_long_interval",
    "long_baseline_quality",
)


def add_points(
    row: dict[str, Any],
    quality: Figure,
    losses: dict[int, np.ndarray],
    long_losses: dict[int, np.ndarray],
    resamples: int,
) -> None:
    """Add the entry "lengths" to a row of report.json: a point for each length of the student, the shortest first.

    A length is compared with the long baseline of the same length. So the last point differs from the row if the row's
    student takes other steps than the long baseline.

    Args:
        row: of one teacher and student.
        quality: of all models.
        losses: number of steps -> the losses of the student that takes so many, [S, E].
        long_losses: the same of the long baseline. Lengths that it lacks are not compared with it.
        resamples: number of bootstrap samples.
    """
    ratio, variant = row["ratio"], row["variant"]
    teachers, points = {ratio: quality.values.teachers[ratio]}, []
    for steps, values in sorted(losses.items()):
        long = {"_long": long_losses[steps]} if steps in long_losses else {}
        baselines = {"": quality.values.baselines[""]} | long
        sums = quality._replace(values=Models(baselines, teachers, {(ratio, variant): values})).sums()
        against = tuple(baselines)
        figures = dict.fromkeys(_SHOWN) | compared(sums, ratio, variant, resamples, against=against)
        figures |= student_gains(sums, ratio, variant, resamples, against=against)
        figures["student_quality"] = mean_quality(values, quality.weights)
        figures["long_baseline_quality"] = mean_quality(long["_long"], quality.weights) if long else None
        points.append({"steps": steps, **{key: figures[key] for key in _SHOWN}})
    row["lengths"] = points


def rows_with_points(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows whose students were measured at several lengths."""
    return [row for row in report["ratios"] if "lengths" in row]


def steps_csv(report: dict[str, Any]) -> str:
    """The text of steps.csv: a line per ratio, variant and length."""
    lines = [
        {"ratio": row["ratio"], "variant": row["variant"], **flat_row(point)}
        for row in rows_with_points(report)
        for point in row["lengths"]
    ]
    return csv_text(lines)


def plot_steps(report: dict[str, Any], path: Path) -> None:
    """Write steps.png: the quality and the fraction kept against the student's steps, a line per ratio and variant.

    Bands are the intervals of the fraction against the baseline. Dashed lines are against the long baselines.
    """
    figure = new_figure(11, 4.4)
    quality, kept = figure.subplots(1, 2)
    rows = rows_with_points(report)
    for number, row in enumerate(rows):
        colour, label = COLOURS[number % len(COLOURS)], f"student {title(row)}"
        points = row["lengths"]
        quality.plot(_steps(points), [p["student_quality"] for p in points], "o-", color=colour, label=label)
        for suffix in AGAINST:
            _draw_fraction(kept, points, suffix, colour, label)
    teachers = {row["ratio"]: row["teacher_quality"] for row in rows}
    for (ratio, value), line in zip(teachers.items(), cycle(("-", ":", "-.")), strict=False):
        quality.axhline(value, color="k", linestyle=line, linewidth=1.0, label=f"teacher {ratio}")
    of = report["baseline"]
    quality.axhline(of["quality"], color="0.5", label=f"baseline, {of['steps']:,} steps")
    _draw_long_baseline(quality, rows)
    kept.plot([], [], "s--", color="0.3", label="dashed: against the long baseline")
    kept.axhline(0, color="0.6", linewidth=0.8)
    quality.set(ylabel="negative log perplexity (nats per target token)")
    kept.set(ylabel="fraction of the teacher's gain kept (%)")
    ticks = sorted({steps for row in rows for steps in _steps(row["lengths"])})
    for axes in (quality, kept):
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{steps:,}" for steps in ticks], rotation=45)
        axes.set_xlabel("optimizer steps of the student")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    save_figure(figure, path)


def _draw_long_baseline(axes: Any, rows: list[dict[str, Any]]) -> None:
    qualities = {point["steps"]: point["long_baseline_quality"] for row in rows for point in row["lengths"]}
    known = {steps: value for steps, value in sorted(qualities.items()) if value is not None}
    if known:
        same = len(set(known.values())) == 1  # without a long baseline, that of all lengths is the baseline
        label = "long baseline" + ", with as many more steps" * (not same)
        axes.plot(list(known), list(known.values()), "s--", color="0.5", label=label)


def _steps(points: list[dict[str, Any]]) -> list[int]:
    return [point["steps"] for point in points]


def _draw_fraction(axes: Any, points: list[dict[str, Any]], suffix: str, colour: str, label: str) -> None:
    defined = [point for point in points if point[f"fraction_kept{suffix}"] is not None]
    values = [100 * point[f"fraction_kept{suffix}"] for point in defined]
    marker, line, _ = STYLES[suffix]
    style = {"marker": marker, "linestyle": line, "color": colour, "alpha": 0.5 if suffix else 1.0}
    axes.plot(_steps(defined), values, label=None if suffix else label, **style)
    if defined and not suffix:
        low, high = zip(*(point[f"fraction{suffix}_interval"] for point in defined), strict=True)
        axes.fill_between(_steps(defined), 100 * np.array(low), 100 * np.array(high), color=colour, alpha=0.15)
