"""What the commands that run stages print at their end, in the main process."""

import json
import os
import sys

from rich.console import Console

from pipelines.reporting.table import table
from pipelines.runner.runner import Runner
from pipelines.stages.report import publish
from pipelines.tracking.store_uri import EXPERIMENT
from pipelines.workdir.commands import quoted, suggest
from pipelines.workdir.stage import Finished


def show_stages(runner: Runner, finished: list[Finished], json_: bool) -> None:
    """With ``json_``, what each stage left.

    Raises:
        Unpublished: MLflow has not got all of it.
    """
    if not runner.workspace.is_main_process:
        return
    if json_:
        facts = [{**vars(one), "directory": str(one.directory)} for one in finished]
        print(json.dumps(facts, indent=2))
    _check_published(runner, finished)


def show_report(runner: Runner, finished: list[Finished], json_: bool) -> None:
    """Copy the report, which is the last of ``finished``, to the top of the work directory, and print it.

    Raises:
        Unpublished: MLflow has not got all of ``finished``.
    """
    if not runner.workspace.is_main_process:
        return
    workdir = runner.workspace.directory
    values = publish(finished[-1], workdir)
    if json_:
        print(json.dumps(values, indent=2))
    else:
        Console().print(table(values), highlight=False)
        runner.workspace.say(f"Report and plot: {workdir / 'report.md'}, {workdir / 'fraction_kept.png'}")
    _check_published(runner, finished)
    if not json_:
        runner.workspace.say(f"Compare in the MLflow UI: {suggest('ui', workdir=workdir)}")
        student = values["ratios"][-1]["student_model_uri"]
        runner.workspace.say(f"Back to the data: {suggest('lineage', student, workdir=workdir)}")


def _check_published(runner: Runner, finished: list[Finished]) -> None:
    """Raise Unpublished where MLflow lacks a stage; a process that computes a part of another's leaves that to it."""
    if EXPERIMENT not in os.environ and not all(one.is_tracked for one in finished):
        runner.publisher.check_published(quoted("switch-distill", *sys.argv[1:]))
