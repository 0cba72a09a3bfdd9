"""A server in a process of its own."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

ROOT = Path(__file__).parents[3]


class Server:
    """A running server: its address, its process, and requests to it."""

    def __init__(self, process: subprocess.Popen, url: str, hold: Path | None = None):
        self.process, self.url, self.hold = process, url, hold

    def complete(self, prompt="hello", **fields) -> requests.Response:
        return requests.post(f"{self.url}/v1/completions", json={"prompt": prompt, **fields}, timeout=60)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of all samples of a metric with these labels."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        total = 0.0
        for line in requests.get(f"{self.url}/metrics", timeout=10).text.splitlines():
            sample, _, value = line.rpartition(" ")
            if sample.partition("{")[0] == f"switch_distill_{name}" and all(label in sample for label in wanted):
                total += float(value)
        return total

    def until(self, condition: Callable[[], bool], seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end and self.process.poll() is None
            time.sleep(0.01)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Within the block, the model answers nothing."""
        self.hold.touch()
        try:
            yield
        finally:
            self.hold.unlink(missing_ok=True)


@contextlib.contextmanager
def started(command: list[str], hold: Path | None = None, **environment: str) -> Iterator[Server]:
    """A server from the first line that says where it listens, which it does once it answers."""
    everything = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=everything, **pipes)
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if found := re.search(r"Serving .* on (http://\S+);", line):
                break
        else:
            pytest.fail(f"the server did not start: {''.join(lines)}")
        yield Server(process, found[1], hold)
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


@pytest.fixture(scope="session")
def serving():
    """``started``, for tests that start servers of their own."""
    return started


def _echo_command(hold: Path, settings: dict) -> list[str]:
    script = Path(__file__).with_name("echo_server.py")
    return [str(script), json.dumps({"hold": str(hold), **settings})]


@pytest.fixture(scope="session")
def echo_server(tmp_path_factory):
    """Start an echo server with these settings and limits."""

    def start(**settings) -> contextlib.AbstractContextManager[Server]:
        hold = tmp_path_factory.mktemp("echo") / "hold"
        return started(_echo_command(hold, settings), hold)

    return start


@pytest.fixture
def held_echo(tmp_path):
    """A process whose model does not even load while the file exists, the file, and its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    hold = tmp_path / "hold"
    hold.touch()
    command = [sys.executable, *_echo_command(hold, {"port": port})]
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        yield process, hold, f"http://127.0.0.1:{port}"
        hold.unlink(missing_ok=True)
        process.terminate()


@pytest.fixture(scope="module")
def echo(echo_server):
    with echo_server() as server:
        yield server


@pytest.fixture(scope="module")
def page_server(echo_server):
    """A student and a teacher."""
    with echo_server(teacher=True, seconds=0.1) as server:
        yield server


@pytest.fixture
def pool():
    with ThreadPoolExecutor(64) as threads:
        yield threads
