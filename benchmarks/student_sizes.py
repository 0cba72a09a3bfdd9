"""Speed of the students of a finished report beside their size, their quality and the fraction that they keep.

    python -m benchmarks.student_sizes --workdir work --config student-sizes

Every student answers the inputs of all test examples greedily, in turns with the others and each in its own process.
The rate counts generated tokens, including the end of an answer. With several seeds, it is that of the first seed's
student; the other figures are those of the report.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from benchmarks.timing import Candidate, Timing, alternate
from distill.generation import generate
from distill.io.files import write_text
from distill.models.build import place
from distill.training.loop import make_accelerator
from pipelines.config.run_config import load_config
from pipelines.reporting.cells import csv_text, kept
from pipelines.reporting.plot import interval_errors, new_figure, save_figure
from pipelines.reporting.table import describe_sample
from pipelines.reporting.verdict import title
from pipelines.runner.stage_data import evaluated_examples
from pipelines.tracking.tracked_run import COLOURS
from pipelines.workdir.stage import inputs_of_kind
from pipelines.workdir.workspace import Workspace
from students.load import load_dense

Ids = list[list[int]]


def main(
    config: Annotated[str, typer.Option(help="CONFIG of the run.")],
    workdir: Annotated[Path, typer.Option(help="Work directory of the run.")] = Path("work"),
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each student, in turns.")] = 5,
    output: Annotated[
        Path | None,
        typer.Option(help="CSV file; default: student_sizes.csv in the work directory. A .png is beside it."),
    ] = None,
) -> None:
    """Print a table with a row per student, and write it as CSV and as a plot."""
    output = output or workdir / "student_sizes.csv"
    workspace = Workspace(load_config(config), config, workdir, Console(stderr=True), kind="report")
    stage = workspace.select("report")[0]
    report = json.loads(workspace.finished(stage).read("report.json").read_text())
    inputs = workspace.inputs_of(stage)
    settings = _settings(workspace)
    candidates = []
    for row in report["ratios"]:
        student = inputs_of_kind(stage, inputs, "distill", row["ratio"], row["variant"])[0]
        of_student = {**settings, "model": str(student.read("model"))}
        tokens = sum(min(len(answer) + 1, settings["max_length"]) for answer in answering(**of_student)())
        candidates.append(Candidate(title(row), answering, of_student, work=tokens))
    timings = alternate(candidates, rounds)
    rows = [_measured(row, timings[title(row)]) for row in report["ratios"]]
    write_text(output, csv_text(rows))
    _plot(report, rows, output.with_suffix(".png"))
    _print(report, rows, rounds)


def answering(model: str, inputs: Ids, max_length: int, batch_size: int, precision: Any) -> Callable[[], Ids]:
    """Make a step: the greedy answers of the student in the directory ``model`` to all inputs."""
    disable_progress_bar()
    accelerator = make_accelerator(precision)
    student = place(load_dense(model, "student"), accelerator.device)

    def step() -> Ids:
        with accelerator.autocast():
            return generate(student, inputs, max_length=max_length, batch_size=batch_size)

    return step


def _settings(workspace: Workspace) -> dict[str, Any]:
    """What all students answer, and how. An example of a corpus has no padding."""
    config = workspace.config
    examples: Any = evaluated_examples(workspace.data, config.data)
    inputs: Sequence[Any] = examples.inputs() if config.task else examples.batch(range(len(examples))).input_ids
    return {
        "inputs": [row.tolist() for row in inputs],
        "max_length": config.task.max_target if config.task else int(examples.lengths.targets),
        "batch_size": config.teacher.evaluation_batch_size,
        "precision": config.precision,
    }


def _measured(row: dict[str, Any], timing: Timing) -> dict[str, Any]:
    """A line of the CSV file; tokens per second are the median, the lowest and the highest of the rounds."""
    low, high = row["fraction_interval"] or (None, None)
    return {
        "ratio": row["ratio"],
        "variant": row["variant"],
        "parameters": row["student_parameters"],
        "quality": row["student_quality"],
        "fraction_kept": row["fraction_kept"],
        "fraction_low": low,
        "fraction_high": high,
        "tokens_per_second": timing.rate,
        "tokens_per_second_low": timing.work / max(timing.seconds),
        "tokens_per_second_high": timing.work / min(timing.seconds),
        "tokens": timing.work,
        "rounds": len(timing.seconds),
    }


def _print(report: dict[str, Any], rows: list[dict[str, Any]], rounds: int) -> None:
    table = Table(box=box.SIMPLE_HEAD, title=f"Greedy answers, medians of {rounds} rounds in turns")
    table.add_column("student", min_width=12, overflow="fold")
    for name in ("size", "quality", "kept", "tokens/s", "lowest", "highest"):
        table.add_column(name, justify="right", no_wrap=name != "kept")  # the interval may be on a second line
    for row, measured in zip(report["ratios"], rows, strict=True):
        rates = [measured[f"tokens_per_second{suffix}"] for suffix in ("", "_low", "_high")]
        figures = [f"{row['student_parameters']:,}", f"{row['student_quality']:.3f}", kept(row, "")]
        table.add_row(title(row), *figures, *(f"{rate:,.0f}" for rate in rates))
    Console().print(table)


def _plot(report: dict[str, Any], rows: list[dict[str, Any]], path: Path) -> None:
    """Fraction kept, with its interval, against tokens per second, with the range of the rounds."""
    figure = new_figure(8, 5)
    axes, ratios = figure.subplots(), list(dict.fromkeys(row["ratio"] for row in rows))
    for row, measured in zip(report["ratios"], rows, strict=True):
        if row["fraction_kept"] is None:
            continue
        rate, colour = measured["tokens_per_second"], COLOURS[ratios.index(row["ratio"]) % len(COLOURS)]
        spread = [[rate - measured["tokens_per_second_low"]], [measured["tokens_per_second_high"] - rate]]
        place = (rate, 100 * row["fraction_kept"])
        axes.errorbar(*place, [[error] for error in interval_errors(row, "")], spread, fmt="o", color=colour, capsize=3)
        name = f"{title(row)}, {measured['parameters'] / 1e6:.3g}M"
        axes.annotate(name, place, (6, 4), textcoords="offset points", fontsize=8, color=colour)
    axes.axhline(0, color="0.6", linewidth=0.8)
    left, right = axes.get_xlim()
    axes.set_xlim(left, right + 0.35 * (right - left))  # room for names
    axes.grid(alpha=0.25)
    axes.set(xlabel="generated tokens per second", ylabel="fraction of the teacher's gain kept (%)")
    data = report["data"]
    of = describe_sample(data, report["ratios"][0]["seeds"])
    figure.suptitle(f"Greedy answers of students on {data['name']}, {of}", parse_math=False)
    save_figure(figure, path)


if __name__ == "__main__":
    typer.run(main)
