"""The plot of a task's groups: gains of teacher and student in each, as the paper has them for 101 languages."""

import warnings
from pathlib import Path
from typing import Any

from pipelines.reporting.plot import near, new_figure, save_figure
from pipelines.reporting.task_report import KEPT_AT_LEAST
from pipelines.tracking.tracked_run import COLOURS

_MOST_NAMED = 60  # names of groups that fit below a panel
_MOST_PANELS = 6


def plot_groups(report: dict[str, Any], path: Path) -> None:
    """Write groups.png: a panel per ratio, with the gain of teacher and student over the baseline in each group.

    Groups are in the order of the teacher's gain, and each panel has its own order. Pale points are groups with too few
    documents. With several variants, the students are those of the first. Of many ratios, the largest are drawn.

    Args:
        report: the values of report.json of a task with groups.
    """
    rows = [row for row in report["ratios"] if row["variant"] == report["ratios"][0]["variant"]][-_MOST_PANELS:]
    count = len(rows[0]["groups"])
    figure = new_figure(min(max(7.0, 0.2 * count), 16.0), 0.6 + 3.6 * len(rows))
    for axes, row, colour in zip(figure.subplots(len(rows), squeeze=False)[:, 0], rows, COLOURS, strict=False):
        _draw_groups(axes, row, colour)
    of = report["data"]
    title = f"Gains in {count:,} groups of {of['name']}, {of['test_examples']:,} {of['eval_split']} examples"
    figure.suptitle(title, parse_math=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # names of groups may be of any script
        save_figure(figure, path)


def _draw_groups(axes: Any, row: dict[str, Any], colour: str) -> None:
    groups = sorted(row["groups"], key=lambda one: one["gain"], reverse=True)
    size = 30 if len(groups) <= _MOST_NAMED else 12
    student = " ".join(filter(None, ("student", row["variant"])))
    points = []
    for few in (False, True):
        places = [place for place, one in enumerate(groups) if one["too_few_documents"] == few]
        gains = [groups[place]["gain"] for place in places]
        alpha = 0.3 if few else 1.0
        lows, highs = zip(*(groups[place]["gain_interval"] for place in places), strict=True) if places else ((), ())
        axes.vlines(places, lows, highs, color="0.5", linewidth=0.8, alpha=0.6 * alpha)
        label = None if few else "teacher, with 95 % interval"
        axes.scatter(places, gains, size, "k", marker="^", alpha=alpha, label=label)
        own = [groups[place]["student_quality"] - groups[place]["baseline_quality"] for place in places]
        points += gains + own
        axes.scatter(places, own, size, colour, alpha=alpha, label=None if few else student)
    axes.axhline(0, color="0.6", linewidth=0.8)
    every = -(-len(groups) // _MOST_NAMED)
    named = range(0, len(groups), every)
    # A name is not a formula, also if it contains dollar signs.
    names = [groups[place]["group"][:24] for place in named]
    axes.set_xticks(named, names, rotation=90, fontsize=7, parse_math=False)
    axes.set_xlim(-1, len(groups))
    limits, room = axes.get_ylim(), 0.4 * (max(points) - min(points)) + 0.01
    shown = near(points, room, limits)
    axes.set_ylim(shown)
    notes = [f"one name of {every} is written"] * (every > 1) + ["longer intervals are cut"] * (shown != limits)
    shares = row["group_shares"]
    axes.set(
        xlabel="; ".join(["group, by the teacher's gain", *notes]),
        ylabel="gain over the baseline\n(nats per target token)",
        title=f"{row['ratio']}: the teacher gains in {shares['gain']:.0%} of {shares['groups']:,} groups, "
        f"and the student keeps {KEPT_AT_LEAST:.0%} of it in {shares['keep_30_percent']:.0%}",
    )
    axes.title.set_fontsize(10)
    axes.grid(alpha=0.25, axis="y")
    axes.legend(fontsize=8)
