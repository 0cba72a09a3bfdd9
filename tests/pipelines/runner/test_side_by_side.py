"""Baseline and ratios in parallel processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distill.errors import UserError
from pipelines.config.run_config import load_config
from pipelines.runner import side_by_side
from pipelines.workdir.plan import plan
from pipelines.workdir.stage import Stage
from pipelines.workdir.workspace import Workspace
from tests.forked import Forked

ROOT = Path(__file__).parents[3]


def processes_of(workdir: Path) -> list[str]:
    """Command lines of running processes that name the work directory."""
    lines = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(workdir) in line:
            lines.append(line)
    return lines


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_an_interrupted_run_leaves_no_process_and_continues_to_the_same_report(smoke, cli, tmp_path):
    """The report's fingerprint depends on all stages. It is equal to that of a run without parallel processes."""
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


STARTER = """
import os, subprocess, sys, time
from pipelines.runner.parent import PARENT
environment = {**os.environ, PARENT: str(os.getpid())}
subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], env=environment)
time.sleep(60)
"""
STARTED = """
import os, sys, time
from pipelines.runner.parent import PARENT, end_with_parent
parent = os.getppid()
if sys.argv[1] == "before":
    print("started", flush=True)
    while os.getppid() == parent:
        time.sleep(0.01)
end_with_parent()
print("started", PARENT in os.environ, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
@pytest.mark.parametrize("moment, said", [("after", "started False\n"), ("before", "started\n")])
def test_a_process_ends_with_its_killed_parent_before_and_after_its_request(moment, said):
    command = [sys.executable, "-c", STARTER, STARTED, moment]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout.readline() == said
        starter.kill()
        assert starter.communicate(timeout=20)[0] == ""  # the child holds this pipe too, so it has ended


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_a_command_does_nothing_after_the_end_of_its_parent(cli):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    done = cli("presets", SWITCH_DISTILL_PARENT=str(gone.pid))
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "")
    assert cli("presets", SWITCH_DISTILL_PARENT=str(os.getpid())).returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_run_killed_right_after_it_started_others_leaves_no_process(smoke, tmp_path):
    workdir = tmp_path / "work"
    shutil.copytree(smoke[0] / "data", workdir / "data")
    arguments = ["run", "smoke", "--set", "jobs=2", "--workdir", str(workdir)]
    run = Forked("from pipelines.cli import main; main()", arguments)  # its command line does not name ``workdir``
    end = time.monotonic() + 300
    while not processes_of(workdir):
        assert run.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    run.kill()
    run.communicate()
    end = time.monotonic() + 12  # without the kill they run for twenty seconds
    while processes_of(workdir):
        assert time.monotonic() < end
        time.sleep(0.1)


def test_nothing_runs_between_fork_and_exec():
    """Code there could wait forever for a lock that a thread holds."""
    packages = [
        path for name in ("distill", "teachers", "students", "pipelines") for path in (ROOT / name).rglob("*.py")
    ]
    assert packages and not [path for path in packages if "preexec_fn=" in path.read_text(encoding="utf-8")]


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


class Planned(Workspace):
    """A workspace with planned stages, none of them computed."""

    def __init__(self, directory: Path):
        self.config, self.source, self.directory = load_config("text", []), "text", directory
        ratios = (None, "e4", "e8", "e16")
        self.stages = [Stage("teacher" if r else "baseline", {"ratio": r}, ratio=r, seed=0) for r in ratios]
        self.stages.append(Stage("report", {}))


def test_the_largest_ratios_start_first_and_finished_ones_never(tmp_path, monkeypatch):
    commands = side_by_side._commands(Planned(tmp_path))
    assert commands[0] == ["baseline", "text", "--seed", "0"]
    assert commands[1] == ["run", "text", "--ratio", "e16", "--seed", "0"]
    assert [command[3] for command in commands[1:]] == ["e16", "e8", "e4"]
    monkeypatch.setattr(Planned, "find", lambda workspace, stage: stage.ratio in (None, "e8"))
    assert [command[3] for command in side_by_side._commands(Planned(tmp_path))] == ["e16", "e4"]


def test_each_seed_has_its_own_chains_unless_the_teacher_is_loaded(tmp_path):
    planned = Planned(tmp_path)
    loaded = ["teacher.experts=[4]", f"teacher.checkpoints={{e8: some/switch@{'a' * 40}}}", "data.tokenizer=t5"]
    planned.config = load_config("text", [*loaded, "seeds=[0, 1]"])
    planned.stages = plan(planned.config, "data")
    assert side_by_side._commands(planned) == [
        ["baseline", "text", "--seed", "0"],
        ["baseline", "text", "--seed", "1"],
        ["run", "text", "--ratio", "e8"],
        ["run", "text", "--ratio", "e4", "--seed", "0"],
        ["run", "text", "--ratio", "e4", "--seed", "1"],
    ]


def test_jobs_are_counted_from_one():
    with pytest.raises(UserError, match="jobs is 0"):
        load_config("text", ["jobs=0"])
