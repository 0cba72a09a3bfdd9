"""The plots of a report: fraction kept, quality and compression against the number of experts, or by variant."""

from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.reporting.paper import TABLE_6, TABLE_7
from pipelines.reporting.table import describe_sample, is_task
from pipelines.reporting.verdict import why_none
from pipelines.tracking.tracked_run import COLOURS

PaperFigures = dict[int, tuple[float, float]]  # experts -> fraction kept, and compression
STYLES = {"": ("o", "-", "against the baseline"), "_long": ("s", "--", "against the long baseline")}


def plot_report(report: dict[str, Any], path: Path) -> None:
    """Write the plot of a report as a PNG.

    Several ratios give three panels over the number of experts, with the paper's table 7 as a faint line. Several
    variants of one ratio give a bar per variant.

    Args:
        report: the values of report.json.
    """
    rows = report["ratios"]
    table_6, table_7 = ({}, {}) if is_task(report) else (TABLE_6, TABLE_7)  # the tables are of span corruption
    if len({row["ratio"] for row in rows}) == 1 and len(rows) > 1:
        figure = new_figure(8.5, 1.2 + 0.55 * len(rows))
        _draw_bars(figure.subplots(), rows, table_6)
    else:
        figure = new_figure(14, 4.4)
        kept, quality, compression = figure.subplots(1, 3)
        _draw_kept(kept, rows, table_7)
        _draw_quality(quality, report)
        _draw_compression(compression, rows, table_7)
        for axes in (kept, quality, compression):
            _over_experts(axes, rows, {} if axes is quality else table_7)
    data = report["data"]
    figure.suptitle(
        f"Distilled students on {data['name']}: {data['test_examples']:,} {data['eval_split']} examples of "
        f"{describe_sample(data, rows[0]['seeds'])}",
        parse_math=False,  # a dollar sign in a path does not begin a formula
    )
    save_figure(figure, path)


def plot_routing(layers: list[str], load: np.ndarray, path: Path) -> None:
    """Write a PNG with the load of every expert in every layer, as a multiple of an equal share.

    Args:
        layers: names of the layers.
        load: [layers, experts], share of the tokens that each expert gets; each row sums to 1.
    """
    experts = load.shape[1]
    figure = new_figure(max(5.0, 1.5 + 0.2 * experts), 1.4 + 0.35 * len(layers))
    axes = figure.subplots()
    drawn = axes.imshow(load * experts, aspect="auto", cmap="RdBu_r", vmin=0, vmax=2)
    axes.set_yticks(range(len(layers)), layers)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="expert", title="Load on held-out text (1: an equal share of the tokens)")
    figure.colorbar(drawn, ax=axes)
    save_figure(figure, path)


def new_figure(width: float, height: float) -> Any:
    """An empty figure of a size in inches. It needs no pyplot, whose import takes longer."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _over_experts(axes: Any, rows: list[dict[str, Any]], paper: PaperFigures) -> None:
    axes.set_xscale("log", base=2)
    ticks = sorted({*(row["experts"] for row in rows), *paper})
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.set_xlim(ticks[0] / 1.4, ticks[-1] * 1.4)  # matplotlib finds no limits if no fraction is defined
    axes.set_xlabel("experts per Switch layer of the teacher")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)


def _draw_kept(axes: Any, rows: list[dict[str, Any]], paper: PaperFigures) -> None:
    """Plot the fraction kept with its interval: a line for each variant and each of the two baselines.

    With several variants, lines against the long baseline have no intervals, because these would hide the other ones.
    What is below -100 % or above 200 % is cut at the edge of the panel, except for fractions against the baseline.
    """
    of_paper = [100 * kept for kept, _ in paper.values()]
    limiting, drawn = list(of_paper), list(of_paper)
    variants = _by_variant(rows)
    for number, (colour, (variant, of_variant)) in enumerate(zip(_colours(rows), variants.items(), strict=True)):
        for suffix, (marker, line, against) in STYLES.items():
            label = against if variant is None else variant if not suffix else None
            defined = [row for row in of_variant if row[f"fraction_kept{suffix}"] is not None]
            if not defined:
                axes.plot(
                    [],
                    [],
                    marker=marker,
                    linestyle=line,
                    color=colour,
                    label=label and f"{label}: {why_none(of_variant, suffix)}",
                )
                continue
            # Intervals of one ratio stand side by side.
            aside = 2 ** (0.1 * (number - (len(variants) - 1) / 2) + 0.04 * (suffix != ""))
            fractions = [100 * row[f"fraction_kept{suffix}"] for row in defined]
            bars = suffix == "" or len(variants) == 1
            edges = [100 * edge for row in defined for edge in row[f"fraction{suffix}_interval"]] if bars else []
            drawn += [*fractions, *edges]
            limiting += [*([] if suffix else fractions), *np.clip([*fractions, *edges], -100, 200)]
            axes.errorbar(
                [aside * row["experts"] for row in defined],
                fractions,
                yerr=np.transpose([interval_errors(row, suffix) for row in defined]) if bars else None,
                marker=marker,
                linestyle=line,
                color=colour,
                capsize=4,
                alpha=1.0 if bars else 0.5,
                label=label,
            )
    if rows[0]["variant"]:
        axes.plot([], [], "s--", color="0.3", label="dashed: against the long baseline")
    if paper:
        axes.plot(list(paper), of_paper, color="0.7", marker=".", label="paper's table 7")
    axes.axhline(0, color="0.6", linewidth=0.8)
    shown = near(limiting or [0.0], 5, axes.get_ylim())
    cut = any(not shown[0] <= value <= shown[1] for value in drawn)
    what = "fraction of the teacher's gain kept (%)" + ("\n(what is outside of the panel is cut)" if cut else "")
    axes.set(ylabel=what, ylim=shown)


def _draw_quality(axes: Any, report: dict[str, Any]) -> None:
    """Plot the negative log perplexity of teachers, students and both baselines (the paper's figure 4, left)."""
    rows = report["ratios"]
    for colour, (variant, of_variant) in zip(_colours(rows), _by_variant(rows).items(), strict=True):
        experts = [row["experts"] for row in of_variant]
        if colour == COLOURS[0]:
            axes.plot(experts, [row["teacher_quality"] for row in of_variant], "k^-", label="teacher")
        label = "student" if variant is None else None  # the legend of the first panel names the variants
        axes.plot(experts, [row["student_quality"] for row in of_variant], "o-", color=colour, label=label)
    for name, line in (("baseline", "-"), ("long_baseline", "--")):
        axes.axhline(report[name]["quality"], color="0.5", linestyle=line, label=name.replace("_", " "))
    axes.set(ylabel="negative log perplexity (nats per target token)")


def _draw_compression(axes: Any, rows: list[dict[str, Any]], paper: PaperFigures) -> None:
    by_size: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        by_size.setdefault(row["student_parameters"], []).append(row)
    for (size, own), line in zip(by_size.items(), cycle(("o-", "o--", "o:"))):
        label = "this run" if len(by_size) == 1 else f"student of {size / 1e6:.2f}M"
        saved = [100 * row["compression"] for row in own]
        axes.plot([row["experts"] for row in own], saved, line, color="0.3", label=label)
    if paper:
        saved = [100 * share for _, share in paper.values()]
        axes.plot(list(paper), saved, color="0.7", marker=".", label="paper's table 7")
    axes.set(ylabel="compression (% of the parameters saved)", ylim=(0, 105))


def _draw_bars(axes: Any, rows: list[dict[str, Any]], paper: dict[str, str]) -> None:
    """Plot the fraction kept by each variant of one ratio, against both baselines, and the figures of the paper.

    The limits of the axis fit the fractions against the baseline. The gain over the long baseline may be so small that
    fractions of it have very long intervals.
    """
    places = np.arange(len(rows))[::-1]
    for shift, (suffix, (_, _, against)), colour in zip((0.2, -0.2), STYLES.items(), COLOURS[:2], strict=True):
        defined = [
            (place, row) for place, row in zip(places, rows, strict=True) if row[f"fraction_kept{suffix}"] is not None
        ]
        if not defined:
            axes.plot([], [], " ", label=f"{against}: {why_none(rows, suffix)}")
            continue
        axes.barh(
            [place + shift for place, _ in defined],
            [100 * row[f"fraction_kept{suffix}"] for _, row in defined],
            height=0.38,
            xerr=np.transpose([interval_errors(row, suffix) for _, row in defined]),
            color=colour,
            capsize=3,
            label=against,
        )
    of_paper = [(place, row["variant"]) for place, row in zip(places, rows, strict=True) if row["variant"] in paper]
    if of_paper:
        kept = [float(paper[variant].strip("<%")) for _, variant in of_paper]
        axes.plot(kept, [place for place, _ in of_paper], "D", color="0.2", label="paper, table 6")
    axes.set_yticks(places, [row["variant"] for row in rows])
    axes.axvline(0, color="0.6", linewidth=0.8)
    limits = axes.get_xlim()
    intervals = [row["fraction_interval"] or row["fraction_long_interval"] or () for row in rows]
    shown = near([0.0, 100.0, *(100 * edge for interval in intervals for edge in interval)], 10, limits)
    cut = "" if shown == limits else "; longer intervals are cut"
    axes.set(xlabel=f"fraction of the gain of teacher {rows[0]['ratio']} kept (%){cut}")
    axes.set(xlim=shown, ylim=(-0.7, len(rows) - 0.3))
    axes.grid(alpha=0.25, axis="x")
    axes.legend(fontsize=8)


def _by_variant(rows: list[dict[str, Any]]) -> dict[str | None, list[dict[str, Any]]]:
    return {name: [row for row in rows if row["variant"] == name] for name in dict.fromkeys(r["variant"] for r in rows)}


def _colours(rows: list[dict[str, Any]]) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(len(_by_variant(rows)))]


def near(values: list[float], room: float, limits: tuple[float, float]) -> tuple[float, float]:
    """Limits of an axis: ``limits``, cut at a distance of ``room`` from ``values``."""
    return max(limits[0], min(values) - room), min(limits[1], max(values) + room)


def interval_errors(row: dict[str, Any], suffix: str) -> tuple[float, float]:
    """Distance from the fraction to both ends of its interval, in per cent."""
    fraction, (low, high) = row[f"fraction_kept{suffix}"], row[f"fraction{suffix}_interval"]
    return max(100 * (fraction - low), 0.0), max(100 * (high - fraction), 0.0)
