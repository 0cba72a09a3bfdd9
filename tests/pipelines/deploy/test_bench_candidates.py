"""Candidates that fail: each failure is one sentence, and no process is left."""

import signal
import sys

import psutil
import pytest

from distill.errors import UserError
from pipelines.deploy import bench_candidates
from pipelines.deploy.bench_candidates import Candidate, Process, Server

# A model that repeats the number of tokens, and dies of the prompt "die".
_MODEL = """
import os
from pipelines.deploy import bench_candidates
def answer(prompts, max_tokens):
    return os._exit(9) if "die" in prompts else max_tokens
bench_candidates._ANSWERS["runner"] = lambda directory, threads, **settings: answer
"""
# A server that answers each request with an error.
_SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"error": {"message": "no such prompt"}}')
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print(f"Serving it on http://127.0.0.1:{server.server_port}; Ctrl-C stops it", file=sys.stderr, flush=True)
server.serve_forever()
"""


class InChild:
    """Code that the process which unpickles this object runs: the candidate's process, before it loads the model."""

    def __init__(self, code):
        self.code = code

    def __reduce__(self):
        return exec, (self.code, {})


def model(tmp_path, code):
    return Candidate("small", "runner", tmp_path, {"code": InChild(code)})


@pytest.fixture(autouse=True)
def in_time():
    """A candidate that waits for a dead process fails its test."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it has waited for 120 seconds"))
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def left():
    """A function that lists the processes that the test has started and that are alive."""
    before = set(psutil.Process().children())

    def list_new():
        new = set(psutil.Process().children()) - before
        return [process for process in new if not any("resource_tracker" in part for part in process.cmdline())]

    return list_new


def test_a_process_that_dies_while_it_starts_is_an_error(tmp_path, left):
    with pytest.raises(UserError, match="^small cannot be measured: its process has ended with exit code 9; "):
        Process(model(tmp_path, "import os; os._exit(9)"), 1, "hello")
    assert not left()


def test_a_model_that_cannot_be_loaded_is_an_error(tmp_path, left):
    with pytest.raises(UserError, match=f"^small cannot be measured: {tmp_path} is not an export"):
        Process(Candidate("small", "runner", tmp_path), 1, "hello")
    assert not left()


def test_a_process_that_dies_later_is_an_error_and_can_be_stopped(tmp_path, left):
    process = Process(model(tmp_path, _MODEL), 1, "hello")
    assert process.measure(["hello"], 7, 2).tokens == 14 and len(left()) == 1
    for _ in range(2):  # the process dies of the first request, and is dead at the second
        with pytest.raises(UserError, match="small cannot be measured: its process has ended with exit code 9"):
            process.measure(["die"], 7, 1)
    process.stop()
    assert not left()


def test_a_process_that_works_is_stopped(tmp_path, left):
    process = Process(model(tmp_path, _MODEL), 1, "hello")
    process.stop()
    assert not left()


@pytest.mark.parametrize(
    "code,says",
    [
        (_SERVER, "no such prompt"),
        ("import sys; sys.exit('the port is in use')", "the server did not start: the port is in use"),
        (_SERVER.replace("server.serve_forever", "server.server_close"), "the server does not answer"),
    ],
)
def test_a_server_that_does_not_answer_is_an_error_and_is_stopped(tmp_path, monkeypatch, left, code, says):
    monkeypatch.setattr(bench_candidates, "module_command", lambda *_: [sys.executable, "-c", code])
    with pytest.raises(UserError, match=f"^small cannot be measured: {says}"):
        Server(Candidate("small", "server", tmp_path), 1, "hello")
    assert not left()
