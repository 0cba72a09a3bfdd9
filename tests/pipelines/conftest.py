"""Fixtures: a distilled student and its exports, a tracking server, and command lines that run code at a step."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from pipelines.tracking.store import _make_sqlite
from tests.forked import Forked
from tests.once import once

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def exporting(finished_smoke, shared) -> Path:
    """A copy of the finished smoke run in which the workers export, so that other tests do not see the exports."""
    return once(shared / "exporting", lambda directory: shutil.copytree(finished_smoke[0], directory / "work")) / "work"


@pytest.fixture(scope="session")
def distilled(exporting) -> Path:
    """The directory of the stage ``distill e2``."""
    return next((exporting / "stages").glob("distill-e2-*"))


@pytest.fixture(scope="session")
def export(exporting, distilled, cli, shared):
    """Export the student, at most once per format and precision. Each format's command names it in another way.

    What the command has printed is in ``export.json`` beside the directory of the export.
    """
    row = json.loads((exporting / "report.json").read_text())["ratios"][0]
    names = {"hf": row["student_run_id"], "onnx": row["student_model_uri"], "mlflow": str(distilled / "model")}

    def make(format: str, precision: str) -> Path:
        def run(directory: Path) -> None:
            options = ["--format", format, "--output", str(directory / format), "--workdir", str(exporting), "--json"]
            options += [] if precision == "float32" else ["--precision", precision]
            done = cli("export", names.get(format, str(distilled)), *options)
            assert done.returncode == 0, done.stderr
            (directory / "export.json").write_text(done.stdout)

        return once(shared / f"export-{format}-{precision}", run) / format

    return make


@pytest.fixture(scope="session")
def task_work(shared, cli) -> Path:
    """The work directory of a finished run of task-smoke with one teacher. Workers export in it."""

    def run(directory: Path) -> None:
        ratio = ("--set", "teacher.experts=[2]")
        done = cli("run", "task-smoke", *ratio, "--workdir", str(directory / "work"))
        assert done.returncode == 0, done.stderr

    return once(shared / "task-smoke", run) / "work"


@pytest.fixture(scope="session")
def task_student(task_work) -> Path:
    """The directory of the student of ``task_work``."""
    return next((task_work / "stages").glob("distill-e2-*")) / "model"


@pytest.fixture(scope="session")
def task_export(task_work, task_student, cli, shared):
    """Export the student of ``task_work``, at most once per format and precision."""

    def make(format: str, precision: str) -> Path:
        def run(directory: Path) -> None:
            options = ["--format", format, "--precision", precision, "--workdir", str(task_work)]
            done = cli("export", str(task_student), *options, "--output", str(directory / format))
            assert done.returncode == 0, done.stderr

        return once(shared / f"task-export-{format}-{precision}", run) / format

    return make


@pytest.fixture(scope="session")
def database(tmp_path_factory) -> Path:
    """A store with its tables, whose creation takes seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    _make_sqlite(path)
    return path


class Tracker:
    """A real ``mlflow server`` on its own port. Tests can kill it and start it again."""

    def __init__(self, root: Path):
        self.database = root / "server.db"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        place = [
            "--backend-store-uri",
            f"sqlite:///{self.database}",
            "--artifacts-destination",
            str(root / "artifacts"),
        ]
        address = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        self.command = [sys.executable, "-m", "mlflow", "server", *place, *address]
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # mlflow finds uvicorn there
        environment = {**os.environ, "PATH": path, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(self.command, env=environment, start_new_session=True, **quiet)
        end = time.monotonic() + 120
        while True:
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"{self.url}/health", timeout=5).ok:
                    return
            assert time.monotonic() < end and self.process.poll() is None
            time.sleep(0.2)

    def kill(self) -> None:
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def tracker(tmp_path) -> Iterator[Tracker]:
    """A running server. Its tables exist before the start, because their creation would delay it."""
    server = Tracker(tmp_path)
    _make_sqlite(server.database)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def patched_cli() -> Iterator[Callable[..., Forked]]:
    """Start the command line in a process that first runs ``code``. The process is killed at the end of the test.

    If ``code`` defines ``at(title, step)``, training calls it after each step.
    """
    processes = []

    def start(code: str, *arguments: str, **environment: str) -> subprocess.Popen:
        whole = (
            "import os, pathlib, signal, sys, time\n"
            "from pipelines.cli import app as cli\n"
            "from pipelines.tracking import metric_log\n"
            "from pipelines.runner import progress, runner\n"
            "at = lambda title, step: None\n"
            f"{textwrap.dedent(code)}\n"
            "update = progress.Bar.update\n"
            "def update_and_at(bar, step, *rest):\n"
            "    update(bar, step, *rest)\n"
            "    at(bar._title, step)\n"
            "progress.Bar.update = update_and_at\n"
            "cli.main()\n"
        )
        processes.append(Forked(whole, arguments, environment))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()
