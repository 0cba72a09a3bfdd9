"""A few kills, and a test that the comparison of tests/chaos.py detects damage."""

import json
import shutil
import sqlite3

import pytest

from tests import chaos


@pytest.mark.slow
def test_a_run_that_was_killed_a_few_times_ends_as_one_that_was_not(capsys):
    assert chaos.main(["--kills", "3", "--set", "teacher.experts=[2]"]) == 0
    assert "3 kills" in capsys.readouterr().out.splitlines()[-1]


def test_the_comparison_sees_a_changed_weight_loss_curve_and_report(smoke, tmp_path):
    expected = chaos.result(smoke[0])
    assert not chaos.differences(chaos.result(smoke[0]), expected)
    work = tmp_path / "work"
    shutil.copytree(smoke[0], work)
    weights = next(work.glob("stages/distill-e4-*/model/model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    report = json.loads((work / "report.json").read_text())
    report["ratios"][0]["gain"] += 1e-9
    (work / "report.json").write_text(json.dumps(report))
    with sqlite3.connect(work / "mlflow.db") as store:
        store.execute("DELETE FROM metrics WHERE step = 4 AND key = 'train/loss'")
        store.execute("UPDATE runs SET status = 'RUNNING' WHERE name = 'baseline'")
    name = str(weights.relative_to(work))
    assert chaos.differences(chaos.result(work), expected) == sorted(["curves", "report", "runs", name, "steps"])
