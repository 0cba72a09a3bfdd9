"""The commands that run stages: ``run``, and one for each kind of stage."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from distill.errors import UserError
from distill.processes import num_processes
from pipelines.cli.options import Address, Config, Engine, Json, Ratio, Seed, Set, Workdir, stderr
from pipelines.workdir.commands import WORK

if TYPE_CHECKING:
    from pipelines.runner.runner import StageRunner
    from pipelines.workdir.stage import Stage

commands = typer.Typer()


@commands.command()
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


@commands.command()
def baseline(config: Config, set_: Set = None, workdir: Workdir = WORK, seed: Seed = None, json_: Json = False) -> None:
    """Train the baseline and the long baseline, dense models that gains are measured against."""
    _one_kind("baseline", config, None, set_, workdir, seed, json_)


def _stage_command(kind: str, description: str) -> None:
    """Add the command of a stage that exists once per ratio."""

    def stage(
        config: Config,
        ratio: Ratio = None,
        set_: Set = None,
        workdir: Workdir = WORK,
        seed: Seed = None,
        json_: Json = False,
    ) -> None:
        _one_kind(kind, config, ratio, set_, workdir, seed, json_)

    commands.command(kind, help=description)(stage)


def _shared_stage_command(kind: str, description: str, always: str) -> None:
    """Add the command of a stage whose units several machines share. It always applies the override ``always``."""

    def stage(
        config: Config,
        ratio: Ratio = None,
        set_: Set = None,
        workdir: Workdir = WORK,
        seed: Seed = None,
        engine: Engine = "local",
        address: Address = None,
        json_: Json = False,
    ) -> None:
        _check_engine(engine, address)
        runner = _runner(config, [*(set_ or []), always], workdir, seed, ratio, kind)
        stages = runner.workspace.select(kind, ratio)
        if engine == "ray":
            _run_on_ray(runner, stages, address, shared=True)
        _execute(stages, runner, json_)

    commands.command(kind, help=description)(stage)


_stage_command("teacher", "Stage 1: train or load a Switch teacher.")
_stage_command("init", "Stage 2: initialise a dense student from the teacher's non-expert weights.")
_shared_stage_command(
    "answer",
    "Generate the teacher's answers once and store them, the hard labels of students with distill.targets=teacher.",
    "distill.targets=teacher",
)
_shared_stage_command(
    "label",
    "Compute the teacher's soft labels once and store them, for students with distill.soft_labels=cached.",
    "distill.soft_labels=cached",
)
_stage_command("distill", "Stage 3: train the student on hard and soft labels.")


@commands.command()
def report(config: Config, set_: Set = None, workdir: Workdir = WORK, seed: Seed = None, json_: Json = False) -> None:
    """Stage 4: report the fraction of each teacher's gain that its student keeps."""
    runner = _runner(config, set_, workdir, seed, kind="report")
    _show_report(runner, runner.workspace.select("report"), json_)


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

    return StageRunner(resolved, config, workdir, stderr(), kind=kind, ratio=ratio)


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
    if engine == "ray":
        from pipelines.runner.ray_engine import check_engine

        check_engine(address)


def _run_on_ray(runner: "StageRunner", stages: list["Stage"], address: str | None, *, shared: bool = False) -> None:
    from pipelines.runner.ray_engine import run_on_ray

    for stage in stages if shared else []:
        runner.workspace.inputs_of(stage)  # raises before the cluster starts
    run_on_ray(runner, stages, address, shared=shared)


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
