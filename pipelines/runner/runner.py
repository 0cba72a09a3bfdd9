"""Run stages: reuse the finished ones, compute the rest from their inputs, and publish what MLflow lacks."""

import importlib
import os
import time
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from distill.errors import named_when_lost
from distill.io.disk import named_when_full
from pipelines.config.run_config import RunConfig
from pipelines.runner.publish import Publisher
from pipelines.runner.stage_run import StageRun
from pipelines.tracking.store_uri import EXPERIMENT, check_store
from pipelines.workdir.disk_budget import check_space
from pipelines.workdir.hub_names import names_on_hub, share_commits
from pipelines.workdir.stage import Finished, Stage
from pipelines.workdir.workspace import Workspace

if TYPE_CHECKING:
    from accelerate import Accelerator

PATIENCE = 120.0  # seconds that a store which is away at the end is waited for


class Runner:
    """Executes the stages of a workspace."""

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
        """Open the workspace; see ``Workspace``.

        Raises:
            UserError: see there; or the MLflow store cannot be used.
        """
        self.config = config
        check_store(workdir)
        if os.environ.get("WORLD_SIZE", "1") != "1" and (names := names_on_hub(config)):
            share_commits(names, self.accelerator)
        self.workspace = Workspace(config, source, workdir, console, kind=kind, ratio=ratio)

    @cached_property
    def accelerator(self) -> "Accelerator":
        from distill.training.loop import make_accelerator

        return make_accelerator(self.config.precision)

    @cached_property
    def publisher(self) -> Publisher:
        return Publisher(self.workspace, self._machine)

    def execute(self, stage: Stage) -> Finished:
        """Reuse ``stage`` if it is finished, else compute it from its finished inputs; MLflow gets what it lacks."""
        found = self.workspace.find(stage)
        if found and found.is_tracked and not self.workspace.is_shared:
            return self._reused(found)
        self.workspace.inputs_of(stage)
        # Everything else that a stage writes is named by whoever writes it.
        with self.workspace.lock(stage), named_when_full(self.workspace.directory / "mlflow.db"):
            self.accelerator.wait_for_everyone()  # all look while we hold the lock, and before one of them writes
            found = self.workspace.find(stage)  # whoever was waited for may have finished it
            self.accelerator.wait_for_everyone()
            # A report names the runs of its inputs, which it did not know if MLflow has not got it.
            if found and (found.is_tracked or stage.kind != "report"):
                self._reused(found)
                if self.workspace.is_main_process and not found.is_tracked:
                    with self.publisher.unless_unreachable():
                        self.publisher.publish(stage)
            else:
                self._compute(stage)
        self.accelerator.wait_for_everyone()
        return self.workspace.finished(stage)

    @named_when_lost()
    def execute_all(self, stages: list[Stage]) -> list[Finished]:
        """``execute`` each, if there is space for all of them; then give a store that is away some time to come back.

        Raises:
            DiskFull: there is not; nothing has been computed.
            LostProcess: another of the processes that compute a stage together has ended.
        """
        check_space(self.workspace, stages)
        finished = [self.execute(stage) for stage in stages]
        if all(one.is_tracked for one in finished) or EXPERIMENT in os.environ:
            return finished
        if self.workspace.is_main_process:
            message = f"Everything is computed and on disk; waiting up to {PATIENCE:.0f} s for MLflow (Ctrl-C ends it)"
            self.workspace.say(message)
            self.publisher.store.wait(PATIENCE)
        self.accelerator.wait_for_everyone()
        return [one if one.is_tracked else self.execute(stage) for one, stage in zip(finished, stages, strict=True)]

    def _machine(self) -> dict[str, str]:
        from distill.training.machine import machine_facts  # with torch, which is there where a stage is computed

        return machine_facts(self.accelerator)

    def _reused(self, found: Finished) -> Finished:
        self.workspace.say(
            f"{found.title:<16} reused" + (f"  (run {found.run_id[:8]})" if found.is_tracked else ""), style="dim"
        )
        return found

    def _compute(self, stage: Stage) -> None:
        compute = importlib.import_module(f"pipelines.stages.{stage.kind}").compute
        began = time.perf_counter()
        with StageRun.open(self.workspace, self.accelerator, self.publisher, stage) as run:
            finished = run.finish(compute(run))
        quality = f"  quality {finished.metrics['quality']:.4f}" if "quality" in finished.metrics else ""
        self.workspace.say(f"{stage.title:<16} done in {time.perf_counter() - began:.0f} s{quality}")
