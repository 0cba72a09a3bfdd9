"""Run stages: reuse finished stages, compute the rest from their inputs, and publish stages that MLflow lacks."""

import gc
import importlib
import os
import shutil
import time
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from distill.errors import lost_process_errors
from distill.io.disk import disk_full_errors
from distill.processes import is_main_process, num_processes
from pipelines.config.run_config import RunConfig
from pipelines.runner.load_beside import load_beside
from pipelines.runner.progress import Bar
from pipelines.runner.publish import Publisher
from pipelines.runner.stage_run import StageRun
from pipelines.tracking.store_uri import EXPERIMENT, check_store
from pipelines.workdir.disk_budget import check_space
from pipelines.workdir.hub_names import names_on_hub, share_commits
from pipelines.workdir.stage import FinishedStage, Stage
from pipelines.workdir.workspace import Workspace

if TYPE_CHECKING:
    from accelerate import Accelerator

SHARED = ("answer", "label")  # kinds of stages that several commands compute together
STORE_WAIT = 120.0  # seconds to wait at the end for an unreachable store


class StageRunner:
    """Runs the stages of a workspace."""

    def __init__(
        self,
        config: RunConfig,
        source: str,
        workdir: Path,
        console: Console,
        *,
        kind: str | None = None,
        ratio: str | None = None,
    ):
        """Check the MLflow store and open the workspace; see ``Workspace`` for the arguments.

        Raises:
            UserError: the MLflow store cannot be used, or the workspace cannot be opened.
        """
        check_store(workdir)
        if num_processes() > 1 and (names := names_on_hub(config)):
            share_commits(names, self.accelerator)
        self.workspace = Workspace(
            config, source, workdir, console, kind=kind, ratio=ratio, beside=lambda: load_beside(workdir, kind)
        )
        self.config = self.workspace.config

    @cached_property
    def accelerator(self) -> "Accelerator":
        from distill.training.loop import make_accelerator

        gc.freeze()  # exempts imported modules from the garbage collection that accelerate runs after each training
        return make_accelerator(self.config.precision)

    @cached_property
    def publisher(self) -> Publisher:
        return Publisher(self.workspace, self._machine)

    def execute(self, stage: Stage) -> FinishedStage:
        """Reuse ``stage`` if it is finished, else compute it from its finished inputs. Publish it if MLflow lacks it.

        If another command computes the stage, wait for it. Before, do a part of its work if the stage is ``SHARED``.

        Raises:
            UserError: an input is not finished or is damaged, or another command computes the stage and this run has
                several processes.
            DiskFull: the stage's output does not fit on the disk.
        """
        found = self.workspace.find(stage)
        if found and found.is_tracked and num_processes() == 1:
            return self._reused(found)
        self.workspace.inputs_of(stage)
        # The code that writes any other file raises a DiskFull that names this file.
        help_holder = partial(self._help, stage) if stage.kind in SHARED else None
        with self.workspace.lock(stage, help_holder), disk_full_errors(self.workspace.directory / "mlflow.db"):
            self.accelerator.wait_for_everyone()  # all processes look under the lock, before one of them writes
            found = self.workspace.find(stage)  # the previous holder of the lock may have finished it
            self.accelerator.wait_for_everyone()
            # A report names the runs of its inputs. An unpublished report lacks them, so it is computed again.
            if found and (found.is_tracked or stage.kind != "report"):
                self._reused(found)
                if is_main_process() and not found.is_tracked:
                    with self.publisher.unless_unreachable():
                        self.publisher.publish(stage)
            else:
                self._compute(stage)
        self.accelerator.wait_for_everyone()
        return self.workspace.finished(stage)

    @lost_process_errors()
    def execute_all(self, stages: list[Stage]) -> list[FinishedStage]:
        """Check the disk space and ``execute`` each stage. At the end, wait a while for a store that is unreachable.

        Raises:
            UserError: as for ``execute``.
            DiskFull: the disk has no space for all stages, and nothing has been computed, or it is full later.
            LostProcess: another process of this run has ended.
        """
        check_space(self.workspace, stages)
        finished = [self.execute(stage) for stage in stages]
        if all(one.is_tracked for one in finished) or EXPERIMENT in os.environ:
            return finished
        if is_main_process():
            message = f"All stages are on disk; waiting up to {STORE_WAIT:.0f} s for MLflow (Ctrl-C to stop)"
            self.workspace.say(message)
            self.publisher.store.wait(STORE_WAIT)
        self.accelerator.wait_for_everyone()
        return [one if one.is_tracked else self.execute(stage) for one, stage in zip(finished, stages, strict=True)]

    def _machine(self) -> dict[str, str]:
        from distill.training.machine import machine_facts  # imports torch

        return machine_facts(self.accelerator)

    def _reused(self, found: FinishedStage) -> FinishedStage:
        if is_main_process():  # of a process that was killed after it had finished the stage
            shutil.rmtree(found.directory / "checkpoints", ignore_errors=True)
        self.workspace.say(
            f"{found.title:<16} reused" + (f"  (run {found.run_id[:8]})" if found.is_tracked else ""), style="dim"
        )
        return found

    def _help(self, stage: Stage) -> None:
        """Do a part of a stage that another command computes. It has the MLflow run and writes the result."""
        module = importlib.import_module(f"pipelines.stages.{stage.kind}")
        inputs, directory = self.workspace.inputs_of(stage), stage.directory(self.workspace.directory)
        with Bar(self.workspace.console, stage.title) as bar:
            place = (self.workspace, self.accelerator, self.publisher, stage, inputs, directory)
            module.help_compute(StageRun(*place, tracked=None, curves=None, bar=bar))

    def _compute(self, stage: Stage) -> None:
        compute = importlib.import_module(f"pipelines.stages.{stage.kind.replace('-', '_')}").compute
        began = time.perf_counter()
        with StageRun.open(self.workspace, self.accelerator, self.publisher, stage) as run:
            finished = run.finish(compute(run))
        quality = f"  quality {finished.metrics['quality']:.4f}" if "quality" in finished.metrics else ""
        self.workspace.say(f"{stage.title:<16} done in {time.perf_counter() - began:.0f} s{quality}")
