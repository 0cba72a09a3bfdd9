"""Independent chains of stages in parallel processes: for each seed, the baseline and every ratio.

The training of one small model leaves most cores of a machine idle. Each process runs an ordinary switch-distill
command, so it stops, resumes and reuses stages like that command.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from threading import Thread

from distill.io.hub import commits_environment
from distill.module_command import module_command
from pipelines.runner.parent import PARENT
from pipelines.runner.runner import StageRunner
from pipelines.tracking.store_uri import EXPERIMENT
from pipelines.workdir.disk_budget import check_space
from pipelines.workdir.workspace import Workspace

_Child = subprocess.Popen[str]


def run_side_by_side(runner: StageRunner, arguments: list[str]) -> bool:
    """Compute all unfinished chains, ``config.jobs`` at a time, each with an equal share of the cores.

    Args:
        arguments: the command-line options of this run.

    Returns:
        Whether any chain was unfinished.

    Raises:
        SystemExit: a chain failed. The code is that of the first failed chain, and the others have been stopped.
        DiskFull: the disk has no space for the output of the chains.
    """
    waiting = _commands(runner.workspace)
    if not waiting:
        return False
    check_space(runner.workspace, runner.workspace.stages)
    threads = str(max((os.cpu_count() or 1) // runner.workspace.config.jobs, 1))
    # Copied before the store opens, because mlflow then sets MLFLOW_TRACKING_URI, which the chains would read.
    environment = {"OMP_NUM_THREADS": threads, **os.environ}
    environment |= child_environment(runner)
    with _children() as running:
        while waiting or running:
            while waiting and len(running) < runner.workspace.config.jobs:
                running.append(_start([*waiting.pop(0), *arguments], environment, runner.workspace))
            for child, relay in [pair for pair in running if pair[0].poll() is not None]:
                relay.join()  # the last line may name the cause of a failure
                running.remove((child, relay))
                if child.returncode:
                    raise SystemExit(child.returncode if child.returncode > 0 else 128 - child.returncode)
            time.sleep(0.1)
    return True


def child_environment(runner: StageRunner) -> dict[str, str]:
    """Environment variables of processes that compute stages of this run."""
    experiment = runner.publisher.store.experiment  # creates the MLflow store, before several processes use it
    assert experiment is not None  # a publisher's store has one
    return {EXPERIMENT: experiment, **commits_environment()}


def _commands(workspace: Workspace) -> list[list[str]]:
    """The commands of all unfinished chains: the baselines, then the ratios from the largest, per seed.

    All seeds share a loaded teacher, so one command computes all of its students.
    """
    config, source = workspace.config, workspace.source
    stages = [stage for stage in workspace.stages[:-1] if not workspace.find(stage)]
    unfinished = {(stage.ratio, stage.seed) for stage in stages}
    commands = [["baseline", source, "--seed", str(seed)] for seed in config.seeds if (None, seed) in unfinished]
    for ratio, _ in sorted(config.teacher.ratios.items(), key=lambda item: -item[1]):
        chain = ["run", source, "--ratio", ratio]
        if ratio not in config.teacher.checkpoints:
            commands += [[*chain, "--seed", str(seed)] for seed in config.seeds if (ratio, seed) in unfinished]
        elif any(stage.ratio == ratio for stage in stages):
            commands.append(chain)
    return commands


def _start(command: list[str], environment: dict[str, str], workspace: Workspace) -> tuple[_Child, Thread]:
    """Start a process, and a thread that prints its output.

    The process has a session of its own, so only this process sends it signals. It ends with this process
    (``pipelines.runner.parent``), so that it does not compete with the next run.
    """
    child = subprocess.Popen(
        module_command("pipelines.cli", *command),
        env={**environment, PARENT: str(os.getpid())},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert child.stderr is not None  # it is a pipe
    lines = child.stderr

    def relay() -> None:
        for line in lines:
            workspace.say(line.rstrip())

    thread = Thread(target=relay, daemon=True)
    thread.start()
    return child, thread


@contextlib.contextmanager
def _children() -> Iterator[list[tuple[_Child, Thread]]]:
    """Processes that do not outlive the block: at its end, stop those that still run and wait for them.

    The signal is SIGTERM, because background jobs of a shell and their children ignore SIGINT.
    """
    running: list[tuple[_Child, Thread]] = []
    try:
        yield running
    finally:
        for child, _ in running:
            child.terminate()
        for child, relay in running:
            child.wait()
            relay.join()
