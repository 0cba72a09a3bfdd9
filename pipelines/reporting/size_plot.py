"""The plot of students of several sizes: what a user gets for the parameters that he can afford."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.reporting.plot import interval_errors, near, new_figure, save_figure
from pipelines.reporting.table import describe_sample
from pipelines.tracking.tracked_run import COLOURS

_APART = 0.07  # of the axis, between two ticks


def plot_sizes(report: dict[str, Any], path: Path) -> None:
    """Write sizes.png: fraction kept, and quality, against the student's parameters, with a line per ratio.

    Args:
        report: the values of report.json, whose students differ in size.
    """
    figure = new_figure(13, 5)
    kept, quality = figure.subplots(1, 2)
    by_ratio: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(report["ratios"], key=lambda row: row["student_parameters"]):
        by_ratio.setdefault(row["ratio"], []).append(row)
    for number, (ratio, rows) in enumerate(by_ratio.items()):
        colour = COLOURS[number % len(COLOURS)]
        _draw_kept(kept, ratio, rows, colour)
        _draw_quality(quality, ratio, rows, colour)
    size = report["baseline"]["parameters"] / 1e6
    for name, marker in (("baseline", "D"), ("long_baseline", "s")):
        quality.plot(size, report[name]["quality"], marker, color="0.3", label=name.replace("_", " "))
    kept.axhline(0, color="0.6", linewidth=0.8)
    points = [0.0, *(100 * row["fraction_kept"] for row in report["ratios"] if row["fraction_kept"] is not None)]
    room = 0.4 * (max(points) - min(points)) + 5  # longer intervals are cut
    kept.set(ylabel="fraction of the teacher's gain kept (%)", ylim=near(points, room, kept.get_ylim()))
    quality.set(ylabel="negative log perplexity (nats per target token)")
    for axes in (kept, quality):
        _over_parameters(axes, report["ratios"])
    data = report["data"]
    figure.suptitle(
        f"Students of several sizes on {data['name']}: {data['test_examples']:,} {data['eval_split']} examples of "
        f"{describe_sample(data, report['ratios'][0]['seeds'])}",
        parse_math=False,
    )
    save_figure(figure, path)


def _draw_kept(axes: Any, ratio: str, rows: list[dict[str, Any]], colour: str) -> None:
    """The fraction kept by the students of a ratio, in the order of their size, with its interval."""
    defined = [row for row in rows if row["fraction_kept"] is not None]
    if not defined:
        axes.plot([], [], "o-", color=colour, label=f"{ratio}: undefined")
        return
    sizes, values = _sizes(defined), [100 * row["fraction_kept"] for row in defined]
    errors = np.transpose([interval_errors(row, "") for row in defined])
    axes.errorbar(sizes, values, yerr=errors, fmt="o-", color=colour, capsize=4, label=f"{ratio}, 95 % interval")
    _name(axes, defined, values, colour)


def _draw_quality(axes: Any, ratio: str, rows: list[dict[str, Any]], colour: str) -> None:
    """The quality of the students of a ratio, and of their teacher as a line, because it is far larger."""
    values = [row["student_quality"] for row in rows]
    axes.plot(_sizes(rows), values, "o-", color=colour, label=f"students of {ratio}")
    _name(axes, rows, values, colour)
    millions = f"{rows[0]['teacher_parameters'] / 1e6:.3g}M"
    axes.axhline(rows[0]["teacher_quality"], color=colour, linestyle=":", label=f"teacher {ratio} ({millions})")


def _sizes(rows: list[dict[str, Any]]) -> list[float]:
    return [row["student_parameters"] / 1e6 for row in rows]


def _name(axes: Any, rows: list[dict[str, Any]], values: list[float], colour: str) -> None:
    """Write the names of variants beside their points, alternately above and below: small students are close."""
    for number, (row, size, value) in enumerate(zip(rows, _sizes(rows), values, strict=True)):
        aside, vertical = ((5, 5), "bottom") if number % 2 == 0 else ((5, -5), "top")
        style = {"fontsize": 8, "color": colour, "va": vertical, "annotation_clip": True}
        axes.annotate(row["variant"] or "", (size, value), aside, textcoords="offset points", **style)


def _over_parameters(axes: Any, rows: list[dict[str, Any]]) -> None:
    """A logarithmic axis with a tick for each size that is not too close to the one before."""
    sizes = sorted(set(_sizes(rows)))
    axes.set_xscale("log")
    length = math.log(sizes[-1] / sizes[0]) or 1.0
    ticks: list[float] = []
    for size in sizes:
        if not ticks or math.log(size / ticks[-1]) >= _APART * length:
            ticks.append(size)
    axes.set_xticks(ticks, [f"{size:.3g}" for size in ticks])
    axes.set_xticks([], minor=True)
    axes.margins(x=0.15)
    axes.set_xlabel("student's parameters (million parameters)")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
