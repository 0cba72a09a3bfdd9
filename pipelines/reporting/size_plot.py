"""The plot of students of several sizes: what each number of parameters gives."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.reporting.plot import interval_errors, near, new_figure, save_figure
from pipelines.reporting.table import describe_sample
from pipelines.reporting.verdict import why_none
from pipelines.tracking.tracked_run import COLOURS

_LINES = ("-", "--", "-.")
_APART = 0.07  # of the axis, between two ticks


def plot_sizes(report: dict[str, Any], path: Path) -> None:
    """Write sizes.png: fraction kept, and quality, against the student's parameters.

    The students of a ratio with as many decoder layers have a line.

    Args:
        report: the values of report.json, whose students differ in size.
    """
    rows = sorted(report["ratios"], key=lambda row: row["student_parameters"])
    depths = sorted({row["student_decoder_layers"] for row in rows}, reverse=True)
    figure = new_figure(13, 5)
    kept, quality = figure.subplots(1, 2)
    for number, ratio in enumerate(dict.fromkeys(row["ratio"] for row in report["ratios"])):
        colour = COLOURS[number % len(COLOURS)]
        for depth, line in zip(depths, itertools.cycle(_LINES)):
            of_line = [row for row in rows if (row["ratio"], row["student_decoder_layers"]) == (ratio, depth)]
            name = f"{ratio}, {depth} decoder layer{'s' * (depth > 1)}" if len(depths) > 1 else ratio
            style = {"marker": "o", "linestyle": line, "color": colour}
            if of_line:
                _draw_kept(kept, name, of_line, style)
                _draw_quality(quality, name, of_line, style)
        teacher = next(row for row in rows if row["ratio"] == ratio)
        label = f"teacher {ratio} ({teacher['teacher_parameters'] / 1e6:.3g}M)"  # too large for a point
        quality.axhline(teacher["teacher_quality"], color=colour, linestyle=":", label=label)
    size = report["baseline"]["parameters"] / 1e6
    for name, marker in (("baseline", "D"), ("long_baseline", "s")):
        quality.plot(size, report[name]["quality"], marker, color="0.3", label=name.replace("_", " "))
    kept.axhline(0, color="0.6", linewidth=0.8)
    points = [0.0, *(100 * row["fraction_kept"] for row in rows if row["fraction_kept"] is not None)]
    room = 0.4 * (max(points) - min(points)) + 5  # longer intervals are cut
    kept.set(ylabel="fraction of the teacher's gain kept (%)", ylim=near(points, room, kept.get_ylim()))
    quality.set(ylabel="negative log perplexity (nats per target token)")
    for axes in (kept, quality):
        _over_parameters(axes, sorted({*_sizes(rows), size}))
    data = report["data"]
    figure.suptitle(
        f"Students of several sizes on {data['name']}: {data['test_examples']:,} {data['eval_split']} examples of "
        f"{describe_sample(data, rows[0]['seeds'])}",
        parse_math=False,
    )
    save_figure(figure, path)


def _draw_kept(axes: Any, name: str, rows: list[dict[str, Any]], style: dict[str, Any]) -> None:
    """The fraction kept by students in the order of their size, with its interval."""
    defined = [row for row in rows if row["fraction_kept"] is not None]
    if not defined:
        axes.plot([], [], label=f"{name}: {why_none(rows, '')}", **style)
        return
    sizes, values = _sizes(defined), [100 * row["fraction_kept"] for row in defined]
    errors = np.transpose([interval_errors(row, "") for row in defined])
    axes.errorbar(sizes, values, yerr=errors, capsize=4, label=f"{name}, 95 % interval", **style)
    _write_names(axes, defined, values, style["color"])


def _draw_quality(axes: Any, name: str, rows: list[dict[str, Any]], style: dict[str, Any]) -> None:
    values = [row["student_quality"] for row in rows]
    axes.plot(_sizes(rows), values, label=f"students of {name}", **style)
    _write_names(axes, rows, values, style["color"])


def _sizes(rows: list[dict[str, Any]]) -> list[float]:
    return [row["student_parameters"] / 1e6 for row in rows]


def _write_names(axes: Any, rows: list[dict[str, Any]], values: list[float], colour: str) -> None:
    """Write the names of variants beside their points."""
    behind = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.5}
    for row, size, value in zip(rows, _sizes(rows), values, strict=True):
        style = {"fontsize": 8, "color": colour, "va": "top", "bbox": behind, "textcoords": "offset points"}
        axes.annotate(row["variant"] or "", (size, value), (6, -4), annotation_clip=True, **style)


def _over_parameters(axes: Any, sizes: list[float]) -> None:
    """A logarithmic axis with room for names, and a tick for each size that is not too close to the one before."""
    axes.set_xscale("log")
    length = math.log(sizes[-1] / sizes[0]) or 1.0
    ticks: list[float] = []
    for size in sizes:
        if not ticks or math.log(size / ticks[-1]) >= _APART * length:
            ticks.append(size)
    axes.set_xticks(ticks, [f"{size:.3g}" for size in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(sizes[0] * math.exp(-0.1 * length), sizes[-1] * math.exp(0.25 * length))
    axes.set_xlabel("student's parameters (million parameters)")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
