"""Runs on a Ray cluster of this machine, whose processes tests can kill."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[3]
RAY = Path(sys.executable).with_name("ray")
LIMIT = 420  # seconds of a command
QUIET = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_register_timeout_seconds": "300"}


class Run:
    """A command with ``--engine ray``. A cluster that it has started ends with it."""

    def __init__(self, arguments: list[str], log: Path, tracking: str):
        environment = {**os.environ, **QUIET, "MLFLOW_TRACKING_URI": tracking, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pipelines.cli", *arguments, "--engine", "ray", "--set", "jobs=2"]
        self.log, self.end = log, time.monotonic() + LIMIT
        with open(log, "w") as file:  # not a pipe, which the processes of the cluster would hold too
            self.process = psutil.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=file, start_new_session=True
            )

    def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            assert self.process.poll() is None and time.monotonic() < self.end, self.log.read_text()
            time.sleep(0.01)

    def kill(self, name: str, signal_: int = signal.SIGKILL) -> None:
        """Send a signal to the processes of the cluster whose command line begins with ``name``."""
        found = [one for one in self.process.children(recursive=True) if " ".join(one.cmdline()).startswith(name)]
        assert found, [one.cmdline()[:1] for one in self.process.children(recursive=True)]
        for one in found:
            one.send_signal(signal_)

    def ended(self) -> tuple[int, str]:
        """The exit code, and what it has said."""
        return self.process.wait(max(self.end - time.monotonic(), 1)), self.log.read_text()

    def close(self) -> None:
        """End the command and all processes that it has started."""
        children = self.process.children(recursive=True) if self.process.is_running() else []
        with contextlib.suppress(psutil.NoSuchProcess):
            self.process.terminate()
        psutil.wait_procs([self.process], timeout=30)
        for one in [self.process, *children]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


@pytest.fixture
def on_ray(tmp_path) -> Iterator[Callable[..., Run]]:
    runs = []

    def start(*arguments: str, tracking: str = "") -> Run:
        runs.append(Run(list(arguments), tmp_path / f"{len(runs)}.log", tracking))
        return runs[-1]

    yield start
    for run in runs:
        run.close()


class Nodes:
    """A cluster whose head computes nothing, with two nodes of one CPU each."""

    def __init__(self, log: Path) -> None:
        self.environment, self.log = {**os.environ, **QUIET, "OMP_NUM_THREADS": "1"}, log
        self.processes: list[psutil.Popen] = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.add("--head", "--port", self.address.partition(":")[2], "--include-dashboard", "false", cpus=0)
        for _ in range(2):
            self.add("--address", self.address, cpus=1)

    def add(self, *arguments: str, cpus: int) -> None:
        """Start a node, and wait until it has joined. All nodes of a machine need ports of their own."""
        command = [str(RAY), "start", *arguments, "--num-cpus", str(cpus), "--block"]
        command += ["--object-store-memory", "100000000", "--min-worker-port", "0", "--max-worker-port", "0"]
        with open(self.log, "a") as file:
            quiet = {"stdout": file, "stderr": file, "start_new_session": True}
            self.processes.append(psutil.Popen(command, env=self.environment, **quiet))
        while len(self.joined()) < len(self.processes):
            assert self.processes[-1].poll() is None, self.log.read_text()

    def joined(self) -> list[str]:
        """The lines of the nodes in the cluster's status."""
        status = [str(RAY), "status", "--address", self.address]
        lines = subprocess.run(status, env=self.environment, capture_output=True, text=True).stdout.splitlines()
        return [line for line in lines if line.startswith(" 1 node_")]

    def of(self, name: str) -> list[psutil.Popen]:
        """The nodes that have a process whose command line begins with ``name``."""
        return [node for node in self.processes if any(one.name().startswith(name) for one in node.children(True))]

    def kill(self, node: psutil.Popen) -> None:
        """Kill all processes of a node at once, as the loss of a machine does."""
        for one in [node, *node.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGKILL)


@pytest.fixture
def nodes(tmp_path) -> Iterator[Nodes]:
    cluster = Nodes(tmp_path / "nodes.log")
    yield cluster
    for node in cluster.processes:
        cluster.kill(node)
