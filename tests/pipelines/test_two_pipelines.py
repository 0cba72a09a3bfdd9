"""Two concurrent commands in one work directory."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from distill.errors import UserError
from distill.io.lock import exclusive_lock
from pipelines.workdir.stage import Stage
from pipelines.workdir.workspace import Workspace

ROOT = Path(__file__).parents[2]

# Makes a process wait in the middle of training until a file exists.
HELD = """
    def at(title, step):
        if step == 10:
            pathlib.Path({directory!r}, "reached").touch()
            while not pathlib.Path({directory!r}, "go").exists():
                time.sleep(0.05)
"""


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)


@pytest.mark.parametrize("killed", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_second_waits_for_the_stage_that_the_first_computes(smoke, patched_cli, tmp_path, killed):
    work = tmp_path / "work"
    shutil.copytree(smoke[0] / "data", work / "data")
    arguments = ["teacher", "smoke", "--ratio", "e4", "--workdir", str(work), "--json"]
    first = patched_cli(HELD.format(directory=str(tmp_path)), *arguments)
    wait_for(tmp_path / "reached", first)
    second = patched_cli("", *arguments)
    waits = second.stderr.readline()
    assert f"teacher e4       waits for process {first.pid}, which computes it" in waits and "Ctrl-C stops" in waits
    if killed:
        first.kill()
    else:
        (tmp_path / "go").touch()
    made, said = second.communicate()
    assert second.returncode == 0 and "Traceback" not in said, said
    assert ("done in" in said, "reused" in said) == (killed, not killed)
    if not killed:
        assert first.communicate()[0] == made
    with sqlite3.connect(work / "mlflow.db") as store:
        assert store.execute("SELECT run_uuid, status FROM runs").fetchall() == [
            (json.loads(made)[0]["run_id"], "FINISHED")
        ]
    weights = [next(w.glob("stages/teacher-e4-*/model/model.safetensors")).read_bytes() for w in (work, smoke[0])]
    assert weights[0] == weights[1]
    assert [path.name for path in work.glob("stages/*")] == [next(work.glob("stages/teacher-e4-*")).name]


@pytest.mark.slow
def test_two_on_a_new_work_directory_and_its_store_both_finish(patched_cli, tmp_path):
    work = tmp_path / "work"
    both = [patched_cli("", "baseline", "smoke", "--seed", seed, "--workdir", str(work)) for seed in ("0", "1")]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum("Preparing" in one for one in said) == 1 and len(list((work / "data").iterdir())) == 1
    with sqlite3.connect(work / "mlflow.db") as store:
        assert store.execute("SELECT name, status FROM runs ORDER BY name").fetchall() == [
            ("baseline", "FINISHED"),
            ("baseline seed 1", "FINISHED"),
            ("long-baseline", "FINISHED"),
            ("long-baseline seed 1", "FINISHED"),
        ]


def test_processes_that_share_a_stage_do_not_wait_at_a_barrier_that_would_time_out(tmp_path, monkeypatch):
    stage, stop, held = Stage("baseline", {}), threading.Event(), threading.Event()

    def hold():
        with exclusive_lock(stage.directory(tmp_path), lambda by: None):
            held.set()
            stop.wait()

    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    workspace = SimpleNamespace(directory=tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="baseline is being computed in .* run the same command again after it"):  # noqa: SIM117
        with Workspace.lock(workspace, stage):
            pytest.fail("it is held")
    monkeypatch.setenv("RANK", "1")
    with Workspace.lock(workspace, stage):  # only the main process takes the lock
        pass
    stop.set()
    other.join()


def test_two_work_directories_on_a_new_sqlite_file_find_one_experiment(tmp_path):
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/shared/store.db"}
    code = (
        "import pathlib\nfrom pipelines.tracking.store import Store\nprint(Store(pathlib.Path({!r}), 'x').experiment)"
    )
    commands = [[sys.executable, "-c", code.format(str(tmp_path / name))] for name in ("one", "two")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) for command in commands]
    found = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], found
    assert found[0][0] == found[1][0] != "None\n"
