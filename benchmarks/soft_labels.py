"""The quality of students with cached soft labels: one teacher, with online, top-k and sampled labels.

    python -m benchmarks.soft_labels text --ratio e8 --seeds 5 --num-tokens 4,16,64 --workdir work/soft_labels

All students of a seed start from the same weights and read the same examples, so the differences from the student with
online labels are paired. "none" is a student with hard labels alone. The benchmark prints a table and writes
soft_labels.json in the work directory.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from distill.io.files import write_json
from pipelines.config.run_config import load_config
from pipelines.runner.runner import StageRunner
from pipelines.workdir.stage import FinishedStage

STDERR = Console(stderr=True)


def main(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A preset or YAML file that trains its teachers.")],
    ratio: Annotated[str | None, typer.Option(help="The teacher, for example e8. Default: the smallest.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of students per kind of labels.")] = 3,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of each student. Default: those of CONFIG.")] = None,
    num_tokens: Annotated[str, typer.Option(help="Values of distill.labels.num_tokens, with commas.")] = "4,16,64",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="a.b=c", help="Override one value. Repeatable.")
    ] = None,
    workdir: Annotated[Path, typer.Option(help="Directory for all output.")] = Path("work/soft_labels"),
) -> None:
    """Compare kinds of soft labels. Finished stages are reused, so further seeds or numbers only compute new stages."""
    overrides = [*(set_ or []), *([f"distill.training.steps={steps}"] if steps else [])]
    ratio = ratio or next(iter(load_config(config, overrides).teacher.ratios))
    first = StageRunner(load_config(config, overrides, seed=0), config, workdir, STDERR)
    baseline, teacher = (
        first.execute(first.workspace.select(kind, name)[0]) for kind, name in (("baseline", None), ("teacher", ratio))
    )
    # The teacher is loaded from here on, so students of all seeds share it.
    overrides += [
        "teacher.experts=[]",
        f"teacher.checkpoints={{{ratio}: {json.dumps(str(teacher.model.absolute()))}}}",
        f"data.tokenizer={json.dumps(str(teacher.model.absolute()))}",
    ]
    rows = []
    for name, changes in _kinds([int(count) for count in num_tokens.split(",")]):
        students, size = [], None
        for seed in range(seeds):
            # With this seed, cached labels are of the same examples that the online student reads.
            settings = [*overrides, *changes, f"distill.labels.seed={seed}"]
            student, labels = _student(StageRunner(load_config(config, settings, seed), config, workdir, STDERR))
            students.append(student.metrics["quality"])
            size = labels.metrics["bytes_per_token"] if labels else None
        rows.append({"soft_labels": name, "bytes_per_token": size, "qualities": students})
    result = {
        "teacher": teacher.metrics["quality"],
        "baseline": baseline.metrics["quality"],
        "steps": first.workspace.config.distill.training.steps,
        "hard_fraction": first.workspace.config.distill.hard_fraction,
        "temperature": first.workspace.config.distill.temperature,
        "rows": [_with_figures(row, rows[1]["qualities"], baseline, teacher) for row in rows],
    }
    write_json(workdir / "soft_labels.json", result)
    Console().print(_table(result), highlight=False)


def _kinds(counts: list[int]) -> list[tuple[str, list[str]]]:
    """Name and config overrides of each kind of soft labels."""
    kinds = [("none", ["distill.hard_fraction=1.0"]), ("online", ["distill.soft_labels=online"])]
    for form in ("top_k", "sampled"):
        for count in counts:
            labels = [f"distill.labels.form={form}", f"distill.labels.num_tokens={count}"]
            kinds.append((f"{form} {count}", ["distill.soft_labels=cached", *labels]))
    return kinds


def _student(runner: StageRunner) -> tuple[FinishedStage, FinishedStage | None]:
    """Compute the student of a config with one ratio and seed. Return it and its cached labels, or None."""
    finished = {
        stage.kind: runner.execute(stage)
        for stage in runner.workspace.stages
        if stage.kind not in ("baseline", "report")
    }
    return finished["distill"], finished.get("label")


def _with_figures(
    row: dict[str, Any], online: list[float], baseline: FinishedStage, teacher: FinishedStage
) -> dict[str, Any]:
    """``row`` with the means over seeds and their standard errors, which are None with one seed."""
    quality, base = np.array(row["qualities"]), baseline.metrics["quality"]
    figures = {
        "quality": quality,
        "fraction_kept": (quality - base) / (teacher.metrics["quality"] - base),
        "difference_from_online": quality - np.array(online),
    }
    for name, values in figures.items():
        error = float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
        row = {**row, name: float(values.mean()), f"{name}_error": error}
    return row


def _table(result: dict[str, Any]) -> Table:
    seeds = len(result["rows"][0]["qualities"])
    table = Table(
        title=f"One teacher; {seeds} students of {result['steps']:,} steps for each kind of soft labels",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=0,
        caption="Means over seeds and standard errors. "
        f"Quality: teacher {result['teacher']:.4f}, baseline {result['baseline']:.4f}.",
    )
    for column in ("soft labels", "bytes\nper token", "quality", "fraction kept", "difference\nfrom online"):
        table.add_column(column, justify="left" if column == "soft labels" else "right", no_wrap=True)
    for row in result["rows"]:
        size = "" if row["bytes_per_token"] is None else f"{row['bytes_per_token']:,.0f}"
        cells = [_cell(row, "quality", ".4f"), _cell(row, "fraction_kept", ".1%")]
        table.add_row(row["soft_labels"], size, *cells, _cell(row, "difference_from_online", "+.4f"))
    return table


def _cell(row: dict[str, Any], name: str, form: str) -> str:
    error = row[f"{name}_error"]
    return f"{row[name]:{form}}" + (f" ± {error:{form.removeprefix('+')}}" if error is not None else "")


if __name__ == "__main__":
    disable_progress_bar()  # of transformers; stages have their own
    typer.run(main)
