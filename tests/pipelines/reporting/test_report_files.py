"""The files that a finished report leaves in the work directory."""

import json

import pytest

from distill.errors import UserError
from pipelines.reporting.report_files import copy_report
from pipelines.workdir.stage import OPTIONAL_REPORT_FILES, REPORT_FILES, FinishedStage


@pytest.fixture
def finished(tmp_path):
    """A function that makes the record of a report with these files besides the usual ones."""

    def make(*more: str) -> FinishedStage:
        directory = tmp_path / "-".join(("report", *more))
        directory.mkdir()
        for name in (*REPORT_FILES, *more):
            (directory / name).write_text(json.dumps({"of": directory.name}))
        return FinishedStage("report", "f", "run", None, None, {}, {}, directory).save()

    return make


def test_optional_files_do_not_stay_beside_a_report_without_them(finished, tmp_path):
    workdir = tmp_path / "work"
    workdir.mkdir()
    (workdir / "mine.txt").write_text("kept")
    assert copy_report(finished(*OPTIONAL_REPORT_FILES, "examples.json"), workdir)["of"].startswith("report-groups")
    assert {path.name for path in workdir.iterdir()} == {*REPORT_FILES, *OPTIONAL_REPORT_FILES, "mine.txt"}
    assert copy_report(finished(), workdir) == {"of": "report"}
    assert {path.name for path in workdir.iterdir()} == {*REPORT_FILES, "mine.txt"}


@pytest.mark.parametrize("name", ["groups.csv", "sizes.png", "examples.json"])
def test_damage_to_a_file_of_a_task_is_found(finished, name):
    of = finished(*OPTIONAL_REPORT_FILES, "examples.json")
    (of.directory / name).write_text("damaged")
    with pytest.raises(UserError, match="recompute it with: switch-distill report CONFIG"):
        of.read(name)
