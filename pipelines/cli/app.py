"""The commands. Each command imports its modules only when it runs, so that --help and input errors return fast."""

import errno
import gc
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distill.errors import ExpectedError, UserError
from distill.io.disk import is_full
from distill.processes import is_main_process, num_processes
from pipelines.cli import serving as cli_serving
from pipelines.cli.completion import complete_config, complete_ratio
from pipelines.cli.options import Address, Engine, Json, Model, Teacher, Workdir
from pipelines.runner.parent import end_with_parent
from pipelines.tracking.store_uri import without_credentials
from pipelines.workdir.commands import WORK

if TYPE_CHECKING:
    from rich.console import Console

    from pipelines.runner.runner import StageRunner
    from pipelines.workdir.stage import Stage

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Distil a sparse Switch Transformer into a small dense T5 that you can serve.",
)
app.add_typer(cli_serving.commands)

# Base class of the parser's errors: typer's own, or click's in versions that use click. Typer does not export it.
_WrongUsage: Any = typer.BadParameter.__base__

Config = Annotated[
    str, typer.Argument(metavar="CONFIG", help="A preset's name or a YAML file.", autocompletion=complete_config)
]
Ratio = Annotated[
    str | None,
    typer.Option(help="One teacher size, for example e8. Default: all sizes.", autocompletion=complete_ratio),
]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="a.b=c", help="Override one value. Repeatable.")]
Seed = Annotated[int | None, typer.Option(min=0, max=2**31 - 1, help="Use only this seed.")]


def _print_version(requested: bool) -> None:
    from importlib.metadata import PackageNotFoundError, version

    if not requested:
        return
    try:
        print(f"switch-distill {version('switch-distill')}")
    except PackageNotFoundError:
        raise UserError("a clone that is not installed has no version; install it: pip install -e .") from None
    raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of the program itself, before a command."""


@app.command()
def run(
    config: Config,
    ratio: Ratio = None,
    set_: Set = None,
    workdir: Workdir = WORK,
    seed: Seed = None,
    engine: Engine = "local",
    address: Address = None,
    json_: Json = False,
) -> None:
    """Run all four stages for every ratio and reuse finished stages. With --ratio, run one ratio without the report."""
    _check_engine(engine, address)
    runner = _runner(config, set_, workdir, seed, ratio)
    if ratio:
        stages = [stage for stage in runner.workspace.stages if stage.ratio == ratio]
        if engine == "ray":
            _run_on_ray(runner, stages, address)
        _execute(stages, runner, json_)
        return
    stages = runner.workspace.stages
    if engine == "ray":
        _run_on_ray(runner, stages[:-1], address)
        stages = stages[-1:]
    elif runner.workspace.config.jobs > 1 and num_processes() == 1:
        from pipelines.runner.side_by_side import run_side_by_side

        if run_side_by_side(runner, _options(set_, workdir, seed)):
            stages = stages[-1:]
    _show_report(runner, stages, json_)


@app.command()
def baseline(config: Config, set_: Set = None, workdir: Workdir = WORK, seed: Seed = None, json_: Json = False) -> None:
    """Train the baseline, the dense model that gains are measured against, at both lengths."""
    _one_kind("baseline", config, None, set_, workdir, seed, json_)


def _stage_command(kind: str, description: str, *always: str) -> None:
    """Add the command of a stage that exists once per ratio. The command always applies the overrides ``always``."""

    def stage(
        config: Config,
        ratio: Ratio = None,
        set_: Set = None,
        workdir: Workdir = WORK,
        seed: Seed = None,
        json_: Json = False,
    ) -> None:
        _one_kind(kind, config, ratio, [*(set_ or []), *always], workdir, seed, json_)

    app.command(kind, help=description)(stage)


_stage_command("teacher", "Stage 1: train or load a Switch teacher.")
_stage_command("init", "Stage 2: initialise a dense student from the teacher's non-expert weights.")
_stage_command(
    "answer",
    "Generate the teacher's answers once and store them, the hard labels of students with distill.targets=teacher.",
    "distill.targets=teacher",
)
_stage_command(
    "label",
    "Compute the teacher's soft labels once and store them, for students with distill.soft_labels=cached.",
    "distill.soft_labels=cached",
)
_stage_command("distill", "Stage 3: train the student on hard and soft labels.")


@app.command()
def report(config: Config, set_: Set = None, workdir: Workdir = WORK, seed: Seed = None, json_: Json = False) -> None:
    """Stage 4: report the fraction of each teacher's gain that its student keeps."""
    runner = _runner(config, set_, workdir, seed, kind="report")
    _show_report(runner, runner.workspace.select("report"), json_)


@app.command()
def inspect(model: Teacher, json_: Json = False) -> None:
    """Describe a Switch model from its headers alone, and the memory and disk that each stage needs with it."""
    from pipelines.cli.inspection import show_model

    show_model(model, json_)


@app.command()
def lineage(
    model: Model,
    workdir: Workdir = WORK,
    json_: Json = False,
) -> None:
    """Trace a model back to the bytes of its data, with the records in MLflow."""
    from rich.console import Console

    from pipelines.tracking.lineage import draw, read_export_lineage, read_lineage
    from pipelines.tracking.store import existing_store

    tree = read_export_lineage(model) or read_lineage(existing_store(workdir), model)
    if json_:
        print(json.dumps(tree, indent=2))
    else:
        Console(width=200).print(draw(tree), highlight=False)  # wide enough for whole digests


@app.command()
def ui(
    workdir: Workdir = WORK,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 5000,
    host: Annotated[str, typer.Option(help="Address to listen on. 0.0.0.0 means all addresses.")] = "127.0.0.1",
) -> None:
    """Start the MLflow UI on this work directory's store."""
    from pipelines.tracking.store import existing_store
    from pipelines.tracking.view import serve_ui

    serve_ui(existing_store(workdir), workdir, host, port, _stderr())


@app.command()
def presets(json_: Json = False) -> None:
    """List the presets."""
    from pipelines.config.presets import PRESETS

    listed = {name: (preset.__doc__ or name).strip().splitlines()[0] for name, preset in PRESETS.items()}
    print(json.dumps(listed, indent=2) if json_ else "\n".join(f"{name:<16} {text}" for name, text in listed.items()))


@app.command("config")
def show_config(config: Config, set_: Set = None, seed: Seed = None, json_: Json = False) -> None:
    """Print the resolved config. The output is a valid CONFIG."""
    import yaml

    from pipelines.config.run_config import load_config

    values = load_config(config, set_ or [], seed).model_dump(mode="json")
    print(json.dumps(values, indent=2) if json_ else yaml.safe_dump(values, sort_keys=False), end="\n" if json_ else "")


def main() -> None:
    """Run the command line. Exit codes: 0 success, 1 internal failure, 2 input error, 130 interrupted."""
    sys.exit(_main())


def _main() -> int:
    _quiet_libraries()
    gc.set_threshold(100_000)  # libraries create millions of long-lived objects, and a full scan takes a second
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, so that stages end their MLflow runs
    end_with_parent()
    try:
        code = app(standalone_mode=False, prog_name="switch-distill")  # completion of "python -m ..." cannot work
        if sharding := sys.modules.get("distill.training.sharding"):
            sharding.leave_process_group()
    except _WrongUsage as error:
        return _complain(f"{error.format_message()} (see --help)", 2) if error.format_message() else 2
    except ExpectedError as error:
        return _complain(str(error), 1 if is_full(error) else error.exit_code)
    except Exception as error:
        if is_full(error):
            cause = str(error).strip().split("\n")[0]
            return _complain(f"the disk is full ({cause}); free some space and run the same command again", 1)
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            return _complain(f"{str(error.filename)[:200]}… is too long for a path; choose a shorter one", 2)
        print(without_credentials(traceback.format_exc()), file=sys.stderr, end="")
        return 1
    if code == 130:
        _complain("interrupted; run the same command again to continue from the last checkpoint", 130)
    return code if isinstance(code, int) else 0


def _complain(message: str, code: int) -> int:
    print(f"switch-distill: {without_credentials(message)}", file=sys.stderr)
    return code


def _quiet_libraries() -> None:
    """Silence the output of libraries, which would hide the progress display."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "critical")  # hides its retries to reach the hub
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


def _stderr() -> "Console":
    from rich.console import Console

    return Console(stderr=True, quiet=not is_main_process())


def _runner(
    config: str,
    overrides: list[str] | None,
    workdir: Path,
    seed: int | None,
    ratio: str | None = None,
    kind: str | None = None,
) -> "StageRunner":
    from pipelines.config.run_config import load_config

    resolved = load_config(config, overrides or [], seed)
    if ratio is not None and ratio not in resolved.teacher.ratios:
        raise UserError(f"--ratio is {ratio!r}; {config} has {', '.join(resolved.teacher.ratios)}")
    from pipelines.runner.runner import StageRunner

    return StageRunner(resolved, config, workdir, _stderr(), kind=kind, ratio=ratio)


def _one_kind(
    kind: str,
    config: str,
    ratio: str | None,
    overrides: list[str] | None,
    workdir: Path,
    seed: int | None,
    json_: bool,
) -> None:
    runner = _runner(config, overrides, workdir, seed, ratio, kind)
    _execute(runner.workspace.select(kind, ratio), runner, json_)


def _check_engine(engine: str, address: str | None) -> None:
    if address is not None and engine != "ray":
        raise UserError("--address is of a Ray cluster; add --engine ray")
    if engine == "ray" and num_processes() > 1:
        raise UserError("--engine ray starts its own processes; run it without accelerate launch")


def _run_on_ray(runner: "StageRunner", stages: list["Stage"], address: str | None) -> None:
    from pipelines.runner.ray_engine import run_on_ray

    run_on_ray(runner, stages, address)


def _execute(stages: list["Stage"], runner: "StageRunner", json_: bool) -> None:
    from pipelines.cli.results import show_stages

    show_stages(runner, runner.execute_all(stages), json_)


def _show_report(runner: "StageRunner", stages: list["Stage"], json_: bool) -> None:
    from pipelines.cli.results import show_report

    show_report(runner, runner.execute_all(stages), json_)


def _options(overrides: list[str] | None, workdir: Path, seed: int | None) -> list[str]:
    """Command-line options that give another command the same work directory, overrides and seed."""
    options = ["--workdir", str(workdir), *(f"--set={override}" for override in overrides or [])]
    return options if seed is None else [*options, "--seed", str(seed)]
