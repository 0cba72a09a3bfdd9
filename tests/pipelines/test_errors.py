"""Every expected failure is one line with its exit code. Every other failure is a traceback."""

import errno
import importlib
import json
import signal
import sqlite3
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest

from distill.errors import ExpectedError, UserError
from pipelines.cli import app as cli
from pipelines.tracking import store_uri
from pipelines.tracking.store import Store
from pipelines.tracking.store_uri import StoreError

ROOT = Path(__file__).parents[2]
SENTENCE = "something is missing; make it again"


def kinds() -> list[type[ExpectedError]]:
    """The base class and all subclasses of ExpectedError, in all packages."""
    for package in ("distill", "teachers", "students", "pipelines"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if "ExpectedError" in path.read_text(encoding="utf-8"):
                importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    found = [ExpectedError]
    for kind in found:
        found += [one for one in kind.__subclasses__() if one not in found]
    return found


KINDS = kinds()


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command in this process, and return its exit code and its output."""
    terminate, uri = signal.getsignal(signal.SIGTERM), mlflow.get_tracking_uri()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    def run_here(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["switch-distill", *words])
        capsys.readouterr()
        return cli._main(), capsys.readouterr().err

    yield run_here
    signal.signal(signal.SIGTERM, terminate)
    mlflow.set_tracking_uri(uri)


@pytest.fixture
def failing(run, monkeypatch):
    """Run a command that fails with an error."""

    def fail(error: Exception) -> tuple[int, str]:
        def raise_it(*_) -> None:
            raise error

        monkeypatch.setattr("pipelines.tracking.lineage.read_export_lineage", raise_it)
        return run("lineage", "anything")

    return fail


def check_line(said: str) -> str:
    assert said.startswith("switch-distill: ") and "Traceback" not in said and said.count("\n") == 1, said
    assert len(said) < 700
    return said


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def test_the_kinds_are_found_wherever_they_are_defined():
    names = {"DiskFull", "LostProcess", "ParityFailure", "StoreError", "TrainingDiverged", "Unpublished", "UserError"}
    assert names <= {kind.__name__ for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_of_expected_error_is_one_line_with_its_exit_code(kind, failing):
    code, said = failing(kind(SENTENCE))
    assert code == kind.exit_code == (2 if issubclass(kind, UserError) else 1)
    assert SENTENCE in check_line(said)
    assert said == f"switch-distill: {SENTENCE}\n" or kind is StoreError


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("no such thing"),
        ValueError("not in list"),
        ConnectionError("somewhere, but not at MLflow"),
        type("TrainingDiverged", (RuntimeError,), {})("a name alone says nothing"),
        type("Odd", (Exception,), {"format_message": lambda self: "of no parser"})("odd"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_unexpected_failure_is_a_traceback(error, failing):
    code, said = failing(error)
    assert code == 1 and said.startswith("Traceback") and str(error) in said.splitlines()[-1]


def test_a_traceback_shows_no_credentials(failing, monkeypatch):
    monkeypatch.setattr(store_uri, "ASKED_FOR", "https://me:secret@host")
    code, said = failing(RuntimeError("at https://me:secret@host/api"))
    assert code == 1 and "Traceback" in said and "secret" not in said


@pytest.mark.parametrize(
    "error,text",
    [
        (OSError(errno.ENOSPC, "No space left"), "the disk is full ([Errno 28] No space left); free some space"),
        (caused(UserError(SENTENCE), OSError(errno.ENOSPC, "full")), SENTENCE),
        (caused(StoreError("the disk is full"), sqlite3.OperationalError("database or disk is full")), "disk is full"),
    ],
)
def test_a_full_disk_is_not_an_input_error(error, text, failing):
    code, said = failing(error)
    assert code == 1 and text in check_line(said)


@pytest.mark.parametrize("words", [["nonsense"], ["lineage"], ["presets", "--nonsense"], ["ui", "--port", "x"]])
def test_wrong_usage_is_a_line_that_names_the_help(words, run):
    code, said = run(*words)
    assert code == 2 and check_line(said).endswith("(see --help)\n")


@pytest.fixture
def server(monkeypatch) -> Iterator[SimpleNamespace]:
    """An HTTP server that is the MLflow store of the command. It gives every answer ``status`` and ``body``."""
    answer = SimpleNamespace(status=200, body="{}", url="")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = answer.body.encode()
            self.send_response(answer.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    answer.url = f"http://me:secret@127.0.0.1:{http.server_port}"
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setattr(store_uri, "ASKED_FOR", answer.url)
    yield answer
    http.shutdown()
    http.server_close()


def body(code: str) -> str:
    return json.dumps({"error_code": code, "message": "it says no"})


RUN_ID = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize("model", [RUN_ID, f"m-{RUN_ID}", "models:/a/1", "models:/a@champion"])
@pytest.mark.parametrize(
    "status,code,exit_code",
    [
        (404, "RESOURCE_DOES_NOT_EXIST", 2),
        (400, "INVALID_PARAMETER_VALUE", 2),
        (403, "PERMISSION_DENIED", 1),
        (500, "INTERNAL_ERROR", 1),
        (503, "TEMPORARILY_UNAVAILABLE", 1),
    ],
)
def test_an_error_of_the_server_is_a_line(status, code, exit_code, model, server, run, tmp_path):
    server.status, server.body = status, body(code)
    found, said = run("lineage", model, "--workdir", str(tmp_path))
    assert found == exit_code and "secret" not in check_line(said)
    if exit_code == 2:
        assert f"MODEL {model!r} is not in the store: {code}: it says no" in said
    else:
        assert said.startswith("switch-distill: MLflow (http://127.0.0.1:") and "check that it is running" in said


@pytest.mark.parametrize("status", [200, 404, 502])
def test_a_server_that_is_not_mlflow_is_a_line(status, server, run, tmp_path):
    server.status, server.body = status, "<html>\n<body>hello</body>\n</html>"
    code, said = run("lineage", RUN_ID, "--workdir", str(tmp_path))
    assert code == 1 and check_line(said).startswith("switch-distill: MLflow (http://127.0.0.1:")
    code, said = run("ui", "--workdir", str(tmp_path))
    assert code == 1 and check_line(said).startswith("switch-distill: MLflow (http://127.0.0.1:")


def test_a_store_that_refuses_connections_is_a_line(run, monkeypatch, tmp_path):
    monkeypatch.setattr(store_uri, "ASKED_FOR", "http://me:secret@127.0.0.1:9")
    code, said = run("lineage", RUN_ID, "--workdir", str(tmp_path))
    assert code == 1 and check_line(said).startswith("switch-distill: MLflow (http://127.0.0.1:9) failed: ")
    assert "check that it is running, and run the same command again" in said and "secret" not in said


def test_an_experiment_of_a_server_that_fails_is_wrong_input(server, tmp_path, run):
    server.status, server.body = 500, body("INTERNAL_ERROR")
    with pytest.raises(UserError, match=r"the MLflow store http://127\S+ cannot be used: .*check MLFLOW_TRACKING_URI"):
        Store(tmp_path, "x")
    assert not (tmp_path / "tracking.json").exists()


def test_a_separate_process_gives_a_line_too(server, cli, tmp_path):
    """As a user starts it, with the URI of the store in the environment."""
    server.status, server.body = 403, body("PERMISSION_DENIED")
    done = cli("lineage", RUN_ID, "--workdir", str(tmp_path), MLFLOW_TRACKING_URI=server.url)
    assert done.returncode == 1 and not done.stdout and "secret" not in check_line(done.stderr)
    assert "PERMISSION_DENIED: it says no" in done.stderr
