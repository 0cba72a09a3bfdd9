"""What the commands that run stages print at their end, in the main process."""

import json
import sys

from rich.console import Console

from pipelines.commands import quoted, suggest
from pipelines.delivery import check_delivered
from pipelines.report import publish
from pipelines.reporting.table import table
from pipelines.run import Pipeline
from pipelines.stage import Finished


def show_stages(pipeline: Pipeline, finished: list[Finished], json_: bool) -> None:
    """With ``json_``, what each stage left.

    Raises:
        Undelivered: MLflow has not got all of it.
    """
    if not pipeline.is_main_process:
        return
    if json_:
        facts = [{**vars(one), "directory": str(one.directory)} for one in finished]
        print(json.dumps(facts, indent=2))
    check_delivered(pipeline, finished, quoted("switch-distill", *sys.argv[1:]))


def show_report(pipeline: Pipeline, finished: list[Finished], json_: bool) -> None:
    """Copy the report, which is the last of ``finished``, to the top of the work directory, and print it.

    Raises:
        Undelivered: MLflow has not got all of ``finished``.
    """
    if not pipeline.is_main_process:
        return
    values = publish(finished[-1], pipeline.workdir)
    if json_:
        print(json.dumps(values, indent=2))
    else:
        Console().print(table(values), highlight=False)
        pipeline.say(f"Report and plot: {pipeline.workdir / 'report.md'}, {pipeline.workdir / 'fraction_kept.png'}")
    check_delivered(pipeline, finished, quoted("switch-distill", *sys.argv[1:]))
    if not json_:
        pipeline.say(f"Compare in the MLflow UI: {suggest('ui', workdir=pipeline.workdir)}")
        student = values["ratios"][-1]["student_model_uri"]
        pipeline.say(f"Back to the data: {suggest('lineage', student, workdir=pipeline.workdir)}")
