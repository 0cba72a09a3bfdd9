"""What stored soft labels cost in quality: students of one teacher, from online, top-k and sampled labels.

    python -m benchmarks.soft_labels demo --ratio e8 --seeds 5 --words 4,16,64 --workdir work/soft_labels

Students of a seed start from the same weights and read the same examples, so the differences from the one with online
labels are paired. "none" is a student of hard labels alone: what soft labels are worth here. Prints a table and writes
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
from pipelines.runner.runner import Runner
from pipelines.workdir.stage import Finished

STDERR = Console(stderr=True)


def main(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A preset that trains its teacher, or such a file.")],
    ratio: Annotated[str | None, typer.Option(help="The teacher; the smallest if not given.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Students of each kind.")] = 3,
    steps: Annotated[int | None, typer.Option(min=1, help="Of each student; the config's if not given.")] = None,
    words: Annotated[str, typer.Option(help="Words per token, for both forms.")] = "4,16,64",
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="a.b=c")] = None,
    workdir: Annotated[Path, typer.Option()] = Path("work/soft_labels"),
) -> None:
    """Compare kinds of soft labels. Finished stages are reused, so more seeds or words cost only what is new."""
    overrides = [*(set_ or []), *([f"distill.training.steps={steps}"] if steps else [])]
    ratio = ratio or next(iter(load_config(config, overrides).teacher.ratios))
    first = Runner(load_config(config, overrides, seed=0), config, workdir, STDERR)
    baseline, teacher = (
        first.execute(first.workspace.select(kind, of)[0]) for kind, of in (("baseline", None), ("teacher", ratio))
    )
    # From here on the teacher is a loaded one, which students of all seeds share.
    overrides += [
        "teacher.experts=[]",
        f"teacher.checkpoints={{{ratio}: {json.dumps(str(teacher.model.absolute()))}}}",
        f"data.tokenizer={json.dumps(str(teacher.model.absolute()))}",
    ]
    rows = []
    for name, changes in _kinds([int(count) for count in words.split(",")]):
        students, size = [], None
        for seed in range(seeds):
            of_seed = [*overrides, *changes, f"distill.labels.seed={seed}"]  # the examples of online students too
            student, labels = _student(Runner(load_config(config, of_seed, seed), config, workdir, STDERR))
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
    """Name of a kind of soft labels, and what it changes in the config."""
    kinds = [("none", ["distill.hard_fraction=1.0"]), ("online", ["distill.soft_labels=online"])]
    for form in ("top_k", "sampled"):
        for count in counts:
            stored = [f"distill.labels.form={form}", f"distill.labels.words={count}"]
            kinds.append((f"{form} {count}", ["distill.soft_labels=cached", *stored]))
    return kinds


def _student(runner: Runner) -> tuple[Finished, Finished | None]:
    """The student of a config with one ratio and seed, and the labels that it read, if they are stored."""
    made = {s.kind: runner.execute(s) for s in runner.workspace.stages if s.kind not in ("baseline", "report")}
    return made["distill"], made.get("label")


def _with_figures(row: dict[str, Any], online: list[float], baseline: Finished, teacher: Finished) -> dict[str, Any]:
    """Means over seeds, each with its standard error where there are several."""
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
        title=f"One teacher, {seeds} students each of {result['steps']:,} steps",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=0,
        caption=f"Means and their standard errors. Teacher {result['teacher']:.4f}, baseline {result['baseline']:.4f}.",
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
    disable_progress_bar()  # those of transformers; stages have their own
    typer.run(main)
