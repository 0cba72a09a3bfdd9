"""Whether one learning rate is right for models of several widths.

    python -m benchmarks.learning_rates --workdir work

Dense models of each width are trained from scratch for a few hundred steps with each optimizer and learning rate, on
the training data of CONFIG, and evaluated on its validation split. ``docs/results.md`` has the result.
"""

import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from distill.evaluation import evaluate
from distill.io.files import write_text
from distill.models.build import build_dense, count_parameters, place
from distill.training.loop import make_accelerator, train
from distill.training.train_modules import HardLabels
from pipelines.config.run_config import RunConfig, load_config
from pipelines.reporting.cells import csv_text
from pipelines.runner.stage_data import evaluated_examples, training_examples
from pipelines.workdir.workspace import Workspace

# Learning rates a factor of three apart. The middle ones are those of the preset names and of the recipe best.
RATES = {"adafactor": (0.01, 0.03, 0.09), "muon": (0.0033, 0.01, 0.03)}


class Trial(NamedTuple):
    """One model, and its quality on the validation split."""

    optimizer: str
    width: int
    learning_rate: float
    steps: int
    parameters: int
    quality: float


def main(
    config: Annotated[str, typer.Option(help="CONFIG of data and settings.")] = "names",
    workdir: Annotated[Path, typer.Option(help="Work directory, which holds the prepared data.")] = Path("work"),
    widths: Annotated[list[int], typer.Option("--width", min=16, help="d_model; repeatable.")] = [32, 64, 128],  # noqa: B006
    steps: Annotated[int, typer.Option(min=10, help="Steps of each model.")] = 600,
    jobs: Annotated[int, typer.Option(min=1, help="Models trained at a time, each on one core.")] = 2,
    set_: Annotated[list[str], typer.Option("--set", metavar="a.b=c", help="Override one value.")] = [],  # noqa: B006
    output: Annotated[Path | None, typer.Option(help="CSV file.")] = None,
) -> None:
    """Print a table with a row per optimizer and width, and a column per learning rate."""
    Workspace(load_config(config, set_), config, workdir, Console(stderr=True), kind="baseline")  # prepares the data
    wanted = [(name, width, rate) for width in sorted(widths) for name, rates in RATES.items() for rate in rates]
    # The widest models first, so that no long training remains at the end.
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = [pool.submit(_trial, config, set_, workdir, steps, *one) for one in reversed(wanted)]
        trials = [one.result() for one in track(running, "training", console=Console(stderr=True))]
    trials.sort()
    if output:
        write_text(output, csv_text([trial._asdict() for trial in trials]))
    Console().print(_table(trials, steps))


def _trial(
    config: str, overrides: list[str], workdir: Path, steps: int, optimizer: str, width: int, rate: float
) -> Trial:
    torch.set_num_threads(1)
    loaded = load_config(config, overrides)
    workspace = Workspace(loaded, config, workdir, Console(stderr=True, quiet=True), kind="baseline")
    accelerator = make_accelerator(loaded.precision)
    ids: Any = {"pad": workspace.data.special_tokens.pad, "eos": workspace.data.special_tokens.eos}
    model = place(
        build_dense(_of_width(loaded, width), workspace.data.vocab_size, **ids, seed=loaded.seeds[0]),
        accelerator.device,
    )
    changes = {"optimizer": optimizer, "learning_rate": rate, "steps": steps, "cooldown": 1.0, "evaluate_every": None}
    training = loaded.teacher.training.model_copy(update={**changes, "warmup_steps": steps // 10})
    settings = {"seed": loaded.seeds[0], "batch_size": training.batch_size}
    examples = training_examples(workspace.data, loaded.data, **settings)
    with tempfile.TemporaryDirectory() as directory:
        train(
            HardLabels(model),
            examples,
            training,
            accelerator=accelerator,
            directory=Path(directory),
            seed=loaded.seeds[0],
        )
    validation = evaluated_examples(workspace.data, loaded.data.model_copy(update={"eval_split": "validation"}))
    size = loaded.teacher.evaluation_batch_size
    quality = evaluate(model, validation, batch_size=size, accelerator=accelerator)[0]
    return Trial(optimizer, width, rate, steps, count_parameters(model), quality)


def _of_width(config: RunConfig, width: int) -> Any:
    """The shape of the config's model, scaled to another d_model; the size of a head stays."""
    scale = width / config.model.d_model
    sizes = {"d_model": width, "d_ff": round(config.model.d_ff * scale)}
    return config.model.model_copy(update={**sizes, "num_heads": max(1, round(config.model.num_heads * scale))})


def _table(trials: list[Trial], steps: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=f"Quality on the validation split after {steps:,} steps")
    for name in ("optimizer", "d_model", "parameters", "a third", "learning rate", "three times"):
        table.add_column(name, justify="left" if name == "optimizer" else "right")
    for optimizer, width in dict.fromkeys((trial.optimizer, trial.width) for trial in trials):
        row = [trial for trial in trials if (trial.optimizer, trial.width) == (optimizer, width)]
        best = max(trial.quality for trial in row)
        cells = [
            f"[bold]{one.quality:.3f}[/] ({one.learning_rate:g})"
            if one.quality == best
            else f"{one.quality:.3f} ({one.learning_rate:g})"
            for one in row
        ]
        table.add_row(optimizer, str(width), f"{row[0].parameters:,}", *cells)
    return table


if __name__ == "__main__":
    typer.run(main)
