"""The report's picture: fraction kept and compression against the number of experts."""

from pathlib import Path
from typing import Any

import numpy as np

from pipelines.tracking import COLOURS

# Table 7 of the paper: Switch-Base teachers of 1.1B to 14.7B parameters, which are 16 to 256 experts.
PAPER = {"experts": [16, 32, 64, 128, 256], "kept": [37, 32, 30, 27, 28], "compression": [82, 90, 95, 97, 99]}


def plot_report(report: dict[str, Any], path: Path) -> None:
    """Write a PNG of two panels; the paper's table 7 is the faint line in both."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = report["ratios"]
    experts = [row["experts"] for row in rows]
    figure, (kept, compression) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    colours = {n: COLOURS[number % len(COLOURS)] for number, n in enumerate(experts)}
    compression.scatter(experts, [100 * row["compression"] for row in rows], c=list(colours.values()), zorder=3)
    compression.plot(experts, [100 * row["compression"] for row in rows], color="0.3", label="this run")
    compression.plot(PAPER["experts"], PAPER["compression"], color="0.75", marker=".", label="paper, table 7")
    compression.set(ylabel="compression (% of the parameters saved)", ylim=(0, 105))
    _draw_kept(kept, rows, colours)
    for axes in (kept, compression):
        axes.set_xscale("log", base=2)
        ticks = sorted({*experts, *PAPER["experts"]})
        axes.set_xticks(ticks, [str(n) for n in ticks])
        axes.set_xlabel("experts per Switch layer of the teacher")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    data = report["data"]
    figure.suptitle(f"Distilled students on {data['name']} ({data['validation_examples']:,} held-out examples)")
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)


def _draw_kept(axes: Any, rows: list[dict[str, Any]], colours: dict[int, str]) -> None:
    styles = {"": ("o", "-", "against the baseline"), "_long": ("s", "--", "against the long baseline")}
    for suffix, (marker, line, label) in styles.items():
        defined = [row for row in rows if row[f"fraction_kept{suffix}"] is not None]
        if not defined:
            axes.plot([], [], marker=marker, linestyle=line, color="0.3", label=f"{label}: undefined")
            continue
        x = [row["experts"] for row in defined]
        y = 100 * np.array([row[f"fraction_kept{suffix}"] for row in defined])
        bounds = 100 * np.array([row[f"fraction{suffix}_interval"] for row in defined]).T
        axes.plot(x, y, linestyle=line, color="0.3", zorder=2)
        for i, experts in enumerate(x):
            error = np.maximum([[y[i] - bounds[0, i]], [bounds[1, i] - y[i]]], 0)
            axes.errorbar(experts, y[i], yerr=error, marker=marker, color=colours[experts], capsize=4, zorder=3)
        axes.plot([], [], marker=marker, linestyle=line, color="0.3", label=label)
    axes.plot(PAPER["experts"], PAPER["kept"], color="0.75", marker=".", label="paper, table 7")
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.set(ylabel="fraction of the teacher's gain kept (%)")
