"""Compare intervals over documents with intervals over examples, for a finished run.

python -m benchmarks.intervals text
"""

import itertools
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from pipelines.config.run_config import load_config
from pipelines.reporting.bootstrap import Interval, fraction_kept, gain
from pipelines.reporting.verdict import title
from pipelines.runner.runner import StageRunner
from pipelines.workdir.stage import inputs_of_kind, read_values


def main(config: str, workdir: Annotated[Path, typer.Option(help="Work directory of the run.")] = Path("work")) -> None:
    """Print the gain and the fraction kept of every student, each with both intervals."""
    console = Console(width=110)
    runner = StageRunner(load_config(config), config, workdir, Console(stderr=True))
    report = runner.workspace.select("report")[0]
    inputs = runner.workspace.inputs_of(report)
    documents = runner.workspace.data.evaluated(runner.workspace.config.data).documents

    def losses(kind: str, ratio: str | None = None, variant: str | None = None, name: str = "losses") -> np.ndarray:
        return np.array([read_values(one, name) for one in inputs_of_kind(report, inputs, kind, ratio, variant)])

    baseline = losses("baseline", name="baseline_losses")
    number = f"{len(baseline)} seed{'s' * (len(baseline) != 1)}"
    table = Table(title=f"{config}: {len(documents)} examples of {len(set(documents))} documents, {number}")
    for name in ("student", "gain", "over documents", "over examples", "kept", "over documents", "over examples"):
        table.add_column(name, justify="right")
    for ratio, variant in itertools.product(
        runner.workspace.config.teacher.ratios, runner.workspace.config.variants or [None]
    ):
        student = losses("distill", ratio, variant)
        teacher = np.broadcast_to(losses("teacher", ratio), student.shape)  # all seeds share a loaded teacher
        gains = [gain(baseline, teacher, documents=units) for units in (documents, None)]
        kept = [fraction_kept(baseline, teacher, student, documents=units) for units in (documents, None)]
        bounds = [_bounds(interval) for _, interval in (*gains, *kept)]
        fraction = "undefined" if kept[0][0] is None else f"{kept[0][0]:.3f}"
        name = title({"ratio": ratio, "variant": variant})
        table.add_row(name, f"{gains[0][0]:.3f}", *bounds[:2], fraction, *bounds[2:])
    console.print(table)


def _bounds(interval: Interval | None) -> str:
    return "–" if interval is None else f"[{interval[0]:.3f}, {interval[1]:.3f}]"


if __name__ == "__main__":
    typer.run(main)
