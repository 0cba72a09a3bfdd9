"""Stages as tasks of a Ray cluster (``--engine ray``). Ray is imported only in functions, because it is optional.

Ray schedules. A task waits for the tasks of its inputs, and for the CPUs, the GPU and the memory that it needs. It
computes its stage as the command of the stage does, under the lock of the stage in the work directory. If its worker is
lost, Ray starts the task again on any node, and the stage continues from its last checkpoint.

The object store stays empty: a task gets an ``Order`` of a few kilobytes and returns nothing. Data, models and labels
are files in the work directory, which all nodes share.
"""

import contextlib
import logging
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from distill.errors import ExpectedError, UserError
from pipelines.config.run_config import RunConfig
from pipelines.runner.runner import StageRunner
from pipelines.runner.side_by_side import child_environment
from pipelines.tracking.store_uri import ASKED_FOR, without_credentials
from pipelines.workdir.disk_budget import check_space
from pipelines.workdir.resources import Slots
from pipelines.workdir.stage import Stage
from pipelines.workdir.workspace import Workspace

_RETRIES = 5  # of a task whose worker or node is lost
_PROBES = 5  # seconds without an answer of the head until the cluster counts as lost
_STOP = 60.0  # seconds in which the stages may end their MLflow runs after another one has failed
_OBJECTS = 80 * 2**20  # bytes of the object store of a local cluster; Ray needs 75 MiB
# Variables of the command that its tasks get. A directory of this machine may not exist on others.
_PASSED, _NOT_PASSED = ("MLFLOW_", "HF_", "TRANSFORMERS_", "TOKENIZERS_", "OMP_"), ("HF_HOME",)


class StageFailed(Exception):
    """Why a stage has ended, for the command: the sentence, and the exit code."""


class EngineError(ExpectedError, RuntimeError):
    """The cluster, or a stage on it, has failed."""


@dataclass(frozen=True)
class Order:
    """What a task computes. It travels to the worker."""

    config: str  # JSON
    source: str
    directory: str  # in which the command runs
    workdir: str
    fingerprint: str  # of the stage
    title: str


def check_engine(address: str | None) -> None:
    """Check, before anything is written, that Ray is installed and that something answers at the address.

    Raises:
        UserError: one of them is not so.
    """
    if find_spec("ray") is None:
        raise UserError('--engine ray needs the package ray; install it with: pip install "switch-distill[ray]"')
    if (head := _head(address)) not in ("auto", "local") and not _answers(head):
        raise UserError(f"no Ray cluster answers at {head!r}; --address is HOST:PORT of its head, or auto")


def run_on_ray(runner: StageRunner, stages: list[Stage], address: str | None, *, shared: bool = False) -> None:
    """Compute the unfinished ones of ``stages``, as many at a time as the cluster holds.

    Args:
        runner: of the command.
        stages: each after its inputs. Their kinds are ``SHARED``, if ``shared``.
        shared: whether as many tasks as the cluster holds share the units of each stage. The first one leads and writes
            the result. Each loads the teacher once.
        address: HOST:PORT of the cluster's head; ``auto``: the cluster that this machine is a node of; None: the
            variable RAY_ADDRESS, or without it a cluster on this machine for this call.

    Raises:
        UserError: the cluster cannot be used, no node can hold a stage, or a stage raised it.
        EngineError: the cluster is lost, or a stage failed. The stages that still ran have saved a checkpoint.
        DiskFull: the disk has no space for the output of the stages.
    """
    workspace = runner.workspace
    if not (todo := [stage for stage in stages if not workspace.find(stage)]):
        return
    check_space(workspace, todo)
    passed = {k: v for k, v in os.environ.items() if k.startswith(_PASSED) and k not in _NOT_PASSED}
    passed["MLFLOW_TRACKING_URI"] = ASKED_FOR or ""
    environment = {**passed, **child_environment(runner)}
    with _cluster(address) as ray:
        slots = Slots.of([node["Resources"] for node in ray.nodes() if node["Alive"]], workspace.config.jobs)
        environment = {"OMP_NUM_THREADS": str(slots.cpus), **environment}
        if len(slots.nodes) > 1 and not ASKED_FOR:
            workspace.say("The nodes share an SQLite file as MLflow's store; a server is safer (MLFLOW_TRACKING_URI)")
        fixed = {"max_retries": _RETRIES, "runtime_env": {"env_vars": environment}}
        options = {stage.fingerprint: slots.options(workspace, stage) for stage in todo}
        tasks: dict[str, list[Any]] = {}
        for stage in sorted(todo, key=lambda stage: -workspace.config.teacher.ratios.get(stage.ratio or "", 2**31)):
            inputs = [task for one in stage.inputs.values() for task in tasks.get(one.fingerprint, [])]
            placed = ray.remote(compute).options(name=stage.title, **fixed, **options[stage.fingerprint])
            number = slots.number(options[stage.fingerprint]) if shared else 1
            order = order_of(workspace, stage)
            tasks[stage.fingerprint] = [placed.remote(order, *inputs) for _ in range(number)]
        _wait(ray, [task for several in tasks.values() for task in several])


def order_of(workspace: Workspace, stage: Stage) -> Order:
    """The order of one stage."""
    values = workspace.config.model_dump_json()
    return Order(values, workspace.source, os.getcwd(), str(workspace.directory), stage.fingerprint, stage.title)


def compute(order: Order, *inputs: None) -> None:
    """The task: compute a stage on this node. ``inputs`` only make Ray wait for the tasks of the stage's inputs.

    Raises:
        StageFailed: in place of an ExpectedError, whose class Ray could not always rebuild.
    """
    try:
        try:
            os.chdir(order.directory)
        except OSError as error:
            raise UserError(
                f"{order.directory} is not on {socket.gethostname()} ({error.strerror}); all nodes of the cluster must "
                "share the work directory and the directory of the command, under the same paths"
            ) from error
        config = RunConfig.model_validate_json(order.config)
        runner = StageRunner(config, order.source, Path(order.workdir), Console(stderr=True, width=200))
        planned = {stage.fingerprint: stage for stage in runner.workspace.stages}
        if order.fingerprint not in planned:
            raise UserError(
                f"{socket.gethostname()} plans another {order.title} than the machine of this command, because "
                "precision=auto or the files of a loaded model differ there; set precision, and share the files"
            )
        runner.execute_all([planned[order.fingerprint]])
    except ExpectedError as error:
        raise StageFailed(without_credentials(str(error)), error.exit_code) from None


@contextlib.contextmanager
def _cluster(address: str | None) -> Iterator[Any]:
    """The module ``ray``, connected to a cluster within the block."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # a cluster that starts here would report to Ray's authors
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    import ray

    head = _head(address)
    own: dict[str, Any] = {"include_dashboard": False, "object_store_memory": _OBJECTS} if head == "local" else {}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(head, logging_level=logging.ERROR, **own)
    except Exception as error:  # Ray raises exceptions of many classes here, also Exception itself
        cause = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")
        if head == "local":
            raise EngineError(f"Ray cannot start a cluster on this machine ({cause}); run the command again") from error
        raise UserError(
            f"the Ray cluster at {head!r} cannot be used ({cause}); run the command on one of its nodes, with the "
            "same versions of Ray and Python"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has its own exit code
    try:
        yield ray
    finally:
        ray.shutdown()


def _wait(ray: Any, tasks: list[Any]) -> None:
    """Wait for all tasks. At the first failure, stop the others as Ctrl-C does, and wait for their checkpoints."""
    head, missed = ray.get_runtime_context().gcs_address, 0
    try:
        while tasks:
            done, tasks = ray.wait(tasks, timeout=1.0, fetch_local=False)
            ray.get(done)
            # Ray notices a lost head after a minute, and then ends this process.
            missed = 0 if _answers(head) else missed + 1
            if missed >= _PROBES:
                raise _lost(head)
    except StageFailed as error:
        sentence, code = error.cause.args  # type: ignore[attr-defined]  # Ray's subclass has the cause
        failed = UserError(sentence) if code == UserError.exit_code else EngineError(sentence)
        failed.exit_code = code
        raise failed from None
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        if not _answers(head):
            raise _lost(head) from error
        cause = str(error).strip().splitlines()[0]
        raise EngineError(f"a stage was lost {_RETRIES + 1} times on the Ray cluster ({cause})") from error
    finally:
        if tasks and _answers(head):
            for one in tasks:
                ray.cancel(one)
            ray.wait(tasks, num_returns=len(tasks), timeout=_STOP, fetch_local=False)


def _lost(head: str) -> EngineError:
    return EngineError(
        f"the Ray cluster at {head} is lost; run the same command again when it is back: finished stages are reused, "
        "and others continue from their last checkpoint"
    )


def _head(address: str | None) -> str:
    return address or os.environ.get("RAY_ADDRESS") or "local"


def _answers(address: str) -> bool:
    """Whether something listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=3.0):
            return True
    except (OSError, ValueError, OverflowError):
        return False
