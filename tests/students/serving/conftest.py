"""Servers whose model repeats its prompt; see echo_server.py."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def _echo_command(hold: Path, settings: dict) -> list[str]:
    script = Path(__file__).with_name("echo_server.py")
    return [str(script), json.dumps({"hold": str(hold), **settings})]


@pytest.fixture(scope="session")
def echo_server(serving, tmp_path_factory):
    """A function that starts an echo server with the given settings and limits."""

    def start(**settings) -> contextlib.AbstractContextManager:
        hold = tmp_path_factory.mktemp("echo") / "hold"
        return serving(_echo_command(hold, settings), hold)

    return start


@pytest.fixture
def held_echo(tmp_path):
    """A process whose model does not load while a file exists; the file; and the address of the server."""
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
def task_echo(echo_server):
    """A student of a task."""
    with echo_server(template="to {language}: {source} {{{source}}}", max_input=64) as server:
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
