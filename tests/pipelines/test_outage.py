"""A tracking server that becomes unreachable while a stage is computed."""

import json
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

# Makes MLflow's client fail after a step, like the client of an unreachable server.
GONE = """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    away = False
    def unless_away(real):
        def call(*arguments, **options):
            if away:
                raise MlflowException("API request failed: connection refused")
            return real(*arguments, **options)
        return call
    for name in [name for name in dir(MlflowClient) if not name.startswith("_")]:
        if callable(getattr(MlflowClient, name)):
            setattr(MlflowClient, name, unless_away(getattr(MlflowClient, name)))
    metric_log.SEND_INTERVAL, runner.STORE_WAIT = 0.05, 0
    def at(title, step):
        global away
        away = away or step == 10
"""


# Makes a process wait at each step for which the test has an action, until the test has done it.
WAITS = """
    metric_log.SEND_INTERVAL = 0.05
    def at(title, step):
        here = pathlib.Path({directory!r}) / f"{{title}} {{step}}"
        if f"{{title}} {{step}}" in {places!r}:
            here.touch()
            while here.exists():
                time.sleep(0.05)
            time.sleep(1)
"""
SMALL = ["run", "smoke", "--set", "teacher.experts=[2]", "--workdir"]


def until(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end and process.poll() is None, process.communicate()[1]
        time.sleep(0.05)


def over_http(url: str) -> dict[str, str]:
    return {"MLFLOW_TRACKING_URI": url, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}


def check_server(database: Path, *workdirs: Path) -> None:
    """Check that the server has a finished run per stage, with each point of each curve once, in the order of steps."""
    with sqlite3.connect(database) as store:
        runs = dict(store.execute("SELECT run_uuid, status FROM runs"))
        for path in [path for workdir in workdirs for path in workdir.glob("stages/*/stage.json")]:
            run_id = json.loads(path.read_text())["run_id"]
            assert runs.pop(run_id) == "FINISHED"
            query = "SELECT key, step, value FROM metrics WHERE run_uuid = ? AND step > 0 ORDER BY key, timestamp, step"
            found: dict[str, list] = {}
            for key, step, value in store.execute(query, (run_id,)):
                found.setdefault(key, []).append((step, value))
            expected: dict[str, list] = {}
            for line in (path.parent / "metrics.jsonl").read_text().splitlines():
                record = json.loads(line)
                for key, value in record["metrics"].items():
                    expected.setdefault(key, []).append((record["step"], value))
            assert found == expected and all(points == sorted(points) for points in found.values())
            final = "SELECT count(*), count(DISTINCT key) FROM metrics WHERE run_uuid = ? AND step = 0"
            assert len(set(*store.execute(final, (run_id,)))) == 1
        assert not runs


def test_the_same_command_publishes_stages_that_an_unreachable_store_lacks(smoke, cli, patched_cli, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(smoke[0] / "data", work / "data")
    arguments = ["teacher", "smoke", "--ratio", "e4", "--workdir", str(work)]
    first = patched_cli(GONE, *arguments)
    said = first.communicate()[1]
    last = said.splitlines()[-1]
    assert first.returncode == 1 and "Traceback" not in said, said
    assert "lacks teacher e4: API request failed: connection refused" in last
    assert f"kept in {work / 'stages'}" in last and f"training with: switch-distill {' '.join(arguments)}" in last
    directory = next(work.glob("stages/teacher-*"))
    kept = {str(path.relative_to(directory)) for path in directory.rglob("*")}
    assert {"stage.json", "metrics.jsonl", "losses.json", "model/model.safetensors"} <= kept

    traced = cli("lineage", str(directory), "--workdir", str(work))
    assert traced.returncode == 2 and "is not published to MLflow yet" in traced.stderr
    second = cli(*arguments, "--json")
    assert second.returncode == 0 and "published to MLflow" in second.stderr and "done in" not in second.stderr
    assert json.loads(second.stdout)[0]["run_id"] == json.loads((directory / "run.json").read_text())["run_id"]
    check_server(work / "mlflow.db", work)
    query = "SELECT m.key, m.step, m.value FROM metrics m JOIN runs r USING (run_uuid) WHERE r.name = 'teacher e4'"
    points = []
    for workdir in (work, smoke[0]):
        with sqlite3.connect(workdir / "mlflow.db") as store:
            points.append({row for row in store.execute(query) if not row[0].endswith("tokens_per_second")})
    assert points[0] == points[1]


def test_a_start_without_a_server_is_refused(smoke, cli, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(smoke[0] / "data", work / "data")
    environment = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    done = cli("teacher", "smoke", "--ratio", "e4", "--workdir", str(work), **environment)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert (
        "the MLflow store http://127.0.0.1:9 cannot be used" in done.stderr
        and "check that it is running" in done.stderr
    )
    assert [path.name for path in work.iterdir()] == ["data"]


@pytest.mark.slow
def test_training_continues_without_a_server_and_no_record_is_lost(tracker, patched_cli, tmp_path):
    """The server is down across stages, and within one stage."""
    happens = {
        "baseline 4": tracker.kill,
        "teacher e2 8": tracker.start,
        "distill e2 2": tracker.kill,
        "distill e2 6": tracker.start,
    }
    code = WAITS.format(directory=str(tmp_path), places=list(happens))
    process = patched_cli(code, *SMALL, str(tmp_path / "work"), **over_http(tracker.url))
    for place, happening in happens.items():
        until((tmp_path / place).exists, process)
        happening()
        (tmp_path / place).unlink()
    said = process.communicate()[1]
    assert process.returncode == 0 and "Traceback" not in said, said
    for text in (
        "MLflow is unreachable, results are kept",
        "MLflow is unreachable, metrics are kept",
        "baseline         published",
        "MLflow is back",
    ):
        assert said.count(text) >= 1, said
    check_server(tracker.database, tmp_path / "work")
    row = json.loads((tmp_path / "work" / "report.json").read_text())["ratios"][0]
    assert row["teacher_run_id"] and row["student_model_uri"] == "models:/smoke-student-e2/1"


@pytest.mark.slow
def test_a_server_that_never_comes_back_costs_no_stage(tracker, patched_cli, cli, tmp_path):
    """With parallel processes, some of which start after the server has died."""
    work = tmp_path / "work"
    arguments = [*SMALL, str(work), "--set", "jobs=2"]
    process = patched_cli("runner.STORE_WAIT = 1", *arguments, **over_http(tracker.url))
    until(lambda: any(work.glob("stages/*/run.json")), process)
    tracker.kill()
    said = process.communicate()[1]
    assert process.returncode == 1 and "Traceback" not in said, said
    assert "lacks baseline" in said.splitlines()[-1] and "report:" in said.splitlines()[-1]
    report = json.loads((work / "report.json").read_text())
    assert report["ratios"][0].pop("student_model_uri") is None
    assert len(list(work.glob("stages/*/stage.json"))) == 6 and len(list(work.glob("stages/*/model"))) == 5

    tracker.start()
    done = cli(*arguments, "--json", **over_http(tracker.url))
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stderr.splitlines() if "done in" in line] == ["report"]
    check_server(tracker.database, work)
    after = json.loads((work / "report.json").read_text())
    assert after["ratios"][0].pop("student_model_uri") == "models:/smoke-student-e2/1"
    for key in ("teacher_run_id", "student_run_id"):
        assert after["ratios"][0].pop(key) and report["ratios"][0].pop(key, None) is None
    assert after == report


@pytest.mark.slow
def test_two_work_directories_on_one_server_both_finish(tracker, patched_cli, tmp_path):
    workdirs = [tmp_path / "one", tmp_path / "two"]
    both = [patched_cli("", *SMALL, str(workdir), **over_http(tracker.url)) for workdir in workdirs]
    for process in both:
        said = process.communicate()[1]
        assert process.returncode == 0, said
    check_server(tracker.database, *workdirs)
    uris = [json.loads((work / "report.json").read_text())["ratios"][0]["student_model_uri"] for work in workdirs]
    assert sorted(uris) == ["models:/smoke-student-e2/1", "models:/smoke-student-e2/2"]
