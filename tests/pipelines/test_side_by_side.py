"""Baseline and ratios in processes of their own."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from distill.errors import UserError
from pipelines import side_by_side
from pipelines.config import load_config
from pipelines.plan import plan
from pipelines.stage import Stage

ROOT = Path(__file__).parents[2]


def processes_of(workdir: Path) -> list[str]:
    """Command lines that name the work directory."""
    lines = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(workdir) in line:
            lines.append(line)
    return lines


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_stopped_in_the_middle_it_leaves_no_process_and_goes_on_to_the_same_report(smoke, cli, tmp_path):
    """The report's fingerprint is a function of every stage: it is that of the stages one after the other."""
    workdir = tmp_path / "work"
    arguments = ["run", "smoke", "--set", "jobs=2", "--workdir", str(workdir), "--json"]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": ""}
    command = [sys.executable, "-m", "pipelines.cli", *arguments]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as first:
        for line in first.stderr:
            if "done in" in line:
                assert len(processes_of(workdir)) > 1
                first.send_signal(signal.SIGTERM)
                break
        first.stderr.read()
    assert first.returncode == 143 and processes_of(workdir) == []
    assert not (workdir / "report.json").exists()

    second = cli(*arguments)
    assert second.returncode == 0, second.stderr
    report, expected = json.loads(second.stdout), json.loads(smoke[1].stdout)
    assert report["fingerprint"] == expected["fingerprint"]
    assert [ratio["teacher_quality"] for ratio in report["ratios"]] == pytest.approx(
        [ratio["teacher_quality"] for ratio in expected["ratios"]], abs=0.02
    )
    again = cli(*arguments)
    assert again.returncode == 0 and json.loads(again.stdout) == report and "done in" not in again.stderr


def test_a_failed_chain_ends_the_run_with_its_message(cli, data_config, tmp_path):
    overrides = [
        f"--set=data.corpus={data_config.corpus}",
        "--set=data.input_length=32",
        "--set=data.test_fraction=0.2",
        "--set=data.test_examples=12",
        "--set=teacher.training.learning_rate=1e30",
        "--set=teacher.training.optimizer=adamw",
    ]
    done = cli("run", "smoke", "--set=jobs=2", *overrides, "--workdir", str(tmp_path / "work"))
    assert done.returncode == 1 and "Lower learning_rate" in done.stderr and "Traceback" not in done.stderr


def test_one_ratio_is_run_without_baseline_and_report(smoke, cli):
    done = cli("run", "smoke", "--ratio", "e4", "--workdir", str(smoke[0]), "--json")
    assert [stage["title"] for stage in json.loads(done.stdout)] == ["teacher e4", "init e4", "distill e4"]


class Planned:
    """A pipeline that has planned, and computed nothing."""

    def __init__(self, workdir: Path):
        self.config, self.source, self.workdir = load_config("demo", []), "demo", workdir
        ratios = (None, "e4", "e8", "e16")
        self.stages = [Stage("teacher" if r else "baseline", {"ratio": r}, ratio=r, seed=0) for r in ratios]
        self.stages.append(Stage("report", {}))


def test_the_longest_chains_come_first_and_finished_ones_not_at_all(tmp_path, monkeypatch):
    commands = side_by_side._commands(Planned(tmp_path))
    assert commands[0] == ["baseline", "demo", "--seed", "0"]
    assert commands[1] == ["run", "demo", "--ratio", "e16", "--seed", "0"]
    assert [command[3] for command in commands[1:]] == ["e16", "e8", "e4"]
    monkeypatch.setattr(side_by_side, "find_finished", lambda stage, workdir: stage.ratio in (None, "e8"))
    assert [command[3] for command in side_by_side._commands(Planned(tmp_path))] == ["e16", "e4"]


def test_each_seed_has_chains_of_its_own_unless_the_teacher_is_loaded(tmp_path):
    planned = Planned(tmp_path)
    loaded = ["teacher.experts=[4]", "teacher.checkpoints={e8: somewhere}", "data.tokenizer=t5"]
    planned.config = load_config("demo", [*loaded, "seeds=[0, 1]"])
    planned.stages = plan(planned.config, "data")
    assert side_by_side._commands(planned) == [
        ["baseline", "demo", "--seed", "0"],
        ["baseline", "demo", "--seed", "1"],
        ["run", "demo", "--ratio", "e8"],
        ["run", "demo", "--ratio", "e4", "--seed", "0"],
        ["run", "demo", "--ratio", "e4", "--seed", "1"],
    ]


def test_jobs_are_counted_from_one():
    with pytest.raises(UserError, match="jobs is 0"):
        load_config("demo", ["jobs=0"])
