"""Chains of stages that do not read one another, in processes of their own: of each seed the baseline and each ratio.

A small model leaves most of a machine's cores idle; two of them side by side do not. Each process is a command that a
user could give, so that stopping, resuming and reusing are those of that command.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from threading import Thread

from distill.io.hub import handed_down
from pipelines.runner.parent import PARENT
from pipelines.runner.runner import Runner
from pipelines.tracking.store_uri import EXPERIMENT
from pipelines.workdir.disk_budget import check_space
from pipelines.workdir.workspace import Workspace


def run_side_by_side(runner: Runner, arguments: list[str]) -> bool:
    """Compute what is unfinished of all chains, ``config.jobs`` at a time, each with its share of the cores.

    Args:
        arguments: the options of this run, as a command line gives them.

    Returns:
        Whether there was anything to compute.

    Raises:
        SystemExit: with the exit code of the first chain that failed; the others have been stopped.
        DiskFull: there is no space for what they will write.
    """
    waiting = _commands(runner.workspace)
    if not waiting:
        return False
    check_space(runner.workspace, runner.workspace.stages)
    threads = str(max((os.cpu_count() or 1) // runner.workspace.config.jobs, 1))
    # The store is made by one process, before several use it.
    environment = {
        "OMP_NUM_THREADS": threads,
        **os.environ,
        EXPERIMENT: runner.publisher.store.experiment,
        **handed_down(),
    }
    with _children() as running:
        while waiting or running:
            while waiting and len(running) < runner.workspace.config.jobs:
                running.append(_start([*waiting.pop(0), *arguments], environment, runner.workspace))
            for child, relay in [pair for pair in running if pair[0].poll() is not None]:
                relay.join()  # its last line may be the reason
                running.remove((child, relay))
                if child.returncode:
                    raise SystemExit(child.returncode if child.returncode > 0 else 128 - child.returncode)
            time.sleep(0.1)
    return True


def _commands(workspace: Workspace) -> list[list[str]]:
    """One per seed for the baseline and each ratio, of those that have something left to do; the longest first.

    A loaded teacher is the same for every seed, and so one command computes all of its students.
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


def _start(command: list[str], environment: dict[str, str], workspace: Workspace) -> tuple[subprocess.Popen, Thread]:
    """A process, and the thread that says what it says.

    Signals reach it through this process alone. It ends with this process, so that the next run does not meet it.
    """
    child = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", *command],
        env={**environment, PARENT: str(os.getpid())},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )

    def relay() -> None:
        for line in child.stderr:
            workspace.say(line.rstrip())

    thread = Thread(target=relay, daemon=True)
    thread.start()
    return child, thread


@contextlib.contextmanager
def _children() -> Iterator[list[tuple[subprocess.Popen, Thread]]]:
    """Processes that do not outlive the block: what still runs at its end is stopped and waited for.

    By SIGTERM, because a shell's background job, and so what it starts, ignores SIGINT.
    """
    running: list[tuple[subprocess.Popen, Thread]] = []
    try:
        yield running
    finally:
        for child, _ in running:
            child.terminate()
        for child, relay in running:
            child.wait()
            relay.join()
