"""The files that a report leaves in its directory and at the top of the work directory."""

import json
from pathlib import Path
from typing import Any

from distill.io.files import write_bytes, write_json, write_text
from pipelines.reporting.group_plot import plot_groups
from pipelines.reporting.plot import plot_report
from pipelines.reporting.size_plot import plot_sizes
from pipelines.reporting.step_curve import plot_steps, rows_with_points, steps_csv
from pipelines.reporting.table import differ_in_size, report_csv, report_markdown
from pipelines.reporting.task_table import groups_csv
from pipelines.workdir.stage import OPTIONAL_REPORT_FILES, REPORT_FILES, FinishedStage


def write_report(report: dict[str, Any], directory: Path) -> None:
    """Write all files of a report.

    Args:
        report: the values of report.json.
    """
    write_json(directory / "report.json", report)
    write_text(directory / "report.md", report_markdown(report))
    write_text(directory / "report.csv", report_csv(report))
    plot_report(report, directory / "fraction_kept.png")
    if "groups" in report["ratios"][0]:
        write_text(directory / "groups.csv", groups_csv(report))
        plot_groups(report, directory / "groups.png")
    if rows_with_points(report):
        write_text(directory / "steps.csv", steps_csv(report))
        plot_steps(report, directory / "steps.png")
    if differ_in_size(report):
        plot_sizes(report, directory / "sizes.png")


def copy_report(finished: FinishedStage, workdir: Path) -> dict[str, Any]:
    """Copy a finished report to the top of the work directory. Files of an earlier report do not stay there.

    Returns:
        The values of report.json.

    Raises:
        UserError: a file of the report is missing or damaged.
    """
    for name in OPTIONAL_REPORT_FILES:
        if name not in finished.digests:
            (workdir / name).unlink(missing_ok=True)
    for name in (*REPORT_FILES, *(name for name in OPTIONAL_REPORT_FILES if name in finished.digests)):
        write_bytes(workdir / name, finished.read(name).read_bytes())
    return json.loads((workdir / "report.json").read_text())
