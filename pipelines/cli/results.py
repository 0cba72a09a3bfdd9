"""The final output of the commands that run stages. Only the main process prints it."""

import json
import os
import sys

from rich.console import Console

from distill.processes import is_main_process
from pipelines.reporting.report_files import copy_report
from pipelines.reporting.table import report_table
from pipelines.runner.runner import StageRunner
from pipelines.tracking.store_uri import EXPERIMENT
from pipelines.workdir.commands import quoted, suggest
from pipelines.workdir.stage import FinishedStage


def show_stages(runner: StageRunner, finished: list[FinishedStage], json_: bool) -> None:
    """Print the record of each finished stage as JSON if ``json_``, else nothing.

    Raises:
        Unpublished: MLflow lacks one of the stages.
    """
    if not is_main_process():
        return
    if json_:
        facts = [{**vars(one), "directory": str(one.directory)} for one in finished]
        print(json.dumps(facts, indent=2))
    _check_published(runner, finished)


def show_report(runner: StageRunner, finished: list[FinishedStage], json_: bool) -> None:
    """Copy the report, the last of ``finished``, to the top of the work directory, and print it.

    Raises:
        Unpublished: MLflow lacks one of the stages.
    """
    if not is_main_process():
        return
    workdir = runner.workspace.directory
    values = copy_report(finished[-1], workdir)
    if json_:
        print(json.dumps(values, indent=2))
    else:
        Console().print(report_table(values), highlight=False)
        runner.workspace.say(f"Report and plot: {workdir / 'report.md'}, {workdir / 'fraction_kept.png'}")
    _check_published(runner, finished)
    if not json_:
        runner.workspace.say(f"Compare the students in the MLflow UI: {suggest('ui', workdir=workdir)}")
        student = values["ratios"][-1]["student_model_uri"]
        runner.workspace.say(f"Trace a student to its data: {suggest('lineage', student, workdir=workdir)}")


def _check_published(runner: StageRunner, finished: list[FinishedStage]) -> None:
    """Raise Unpublished if MLflow lacks a stage. A process that another command started leaves this check to it."""
    if EXPERIMENT not in os.environ and not all(one.is_tracked for one in finished):
        runner.publisher.check_published(quoted("switch-distill", *sys.argv[1:]))
