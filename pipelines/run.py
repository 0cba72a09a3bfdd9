"""Run stages: reuse the finished ones, say which command makes a missing one, compute the rest."""

import importlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from distill.disk import named_when_full
from distill.errors import UserError, named_when_lost
from distill.lock import one_at_a_time
from distill.prepare import is_prepared, prepare_data
from distill.prepared_data import PreparedData
from pipelines.commands import suggest
from pipelines.config import RunConfig
from pipelines.delivery import deliver_own, going_on
from pipelines.hub_names import names_on_hub, share_commits
from pipelines.loaded_models import check_models
from pipelines.plan import plan
from pipelines.preflight import check_data, check_launch, check_size
from pipelines.space import check_space
from pipelines.stage import Finished, Stage, find_finished
from pipelines.stage_run import StageRun
from pipelines.store import Store
from pipelines.store_uri import EXPERIMENT, check_store

if TYPE_CHECKING:
    from accelerate import Accelerator

PATIENCE = 120.0  # seconds that a store which is away at the end is waited for


class Pipeline:
    """A config in a work directory: its data, its stages, and what is needed to compute one."""

    def __init__(self, config: RunConfig, source: str, workdir: Path, console: Console, *, kind: str | None = None):
        """Prepare the data, once everything that can be known to be wrong has been looked for.

        Args:
            kind: the only stages that are asked for; None for all.

        Raises:
            UserError: the config does not fit its data, its models or this machine; nothing has been written.
        """
        self.config, self.source, self.workdir, self.console = config, source, workdir, console
        self.away: str | None = None  # why MLflow did not take something, if that is still so
        check_size(config, check_launch())
        check_store(workdir)
        if kind == "label" and not any(one.distill.reads_cached_labels for one in config.students):
            cause = "distill.hard_fraction is 1, so that no student reads soft labels; lower it"
            raise UserError(f"there is nothing to label: {cause}")
        if self.is_shared and (names := names_on_hub(config)):
            share_commits(names, self.accelerator)
        self.data, self.stages = self._prepared_data_and_stages(kind)

    @cached_property
    def accelerator(self) -> "Accelerator":
        from distill.training import make_accelerator

        return make_accelerator(self.config.precision)

    @cached_property
    def store(self) -> Store:
        return Store(self.workdir, self.config.name)

    def select(self, kind: str, ratio: str | None = None) -> list[Stage]:
        """The stages of one kind, all ratios or one."""
        return [stage for stage in self.stages if stage.kind == kind and ratio in (None, stage.ratio)]

    def finished(self, stage: Stage) -> Finished:
        """The finished run of ``stage``.

        Raises:
            UserError: it has not run; the message names the command that makes it.
        """
        found = find_finished(stage, self.workdir)
        if found is None:
            ratio = ("--ratio", stage.ratio) if stage.ratio else ()
            command = suggest(stage.kind, self.source, *ratio, workdir=self.workdir)
            raise UserError(
                f"{stage.title} is missing in {self.workdir}; make it with: {command} (and the same --set and --seed)"
            )
        return found

    def execute(self, stage: Stage) -> Finished:
        """Reuse ``stage`` if it is finished, else compute it from its finished inputs; MLflow gets what it lacks."""
        found = find_finished(stage, self.workdir)
        if found and found.is_tracked and not self.is_shared:
            return self._reused(found)
        self.inputs_of(stage)
        # Everything else that a stage writes is named by whoever writes it.
        with self.turn(stage), named_when_full(self.workdir / "mlflow.db"):
            self.accelerator.wait_for_everyone()  # all look while it is our turn, and before one of them writes
            found = find_finished(stage, self.workdir)  # whoever was waited for may have finished it
            self.accelerator.wait_for_everyone()
            # A report names the runs of its inputs, which it did not know if MLflow has not got it.
            if found and (found.is_tracked or stage.kind != "report"):
                self._reused(found)
                if self.is_main_process and not found.is_tracked:
                    with going_on(self):
                        deliver_own(self, stage)
            else:
                self._compute(stage)
        self.accelerator.wait_for_everyone()
        return self.finished(stage)

    @named_when_lost()
    def execute_all(self, stages: list[Stage]) -> list[Finished]:
        """``execute`` each, if there is space for all of them; then give a store that is away some time to come back.

        Raises:
            DiskFull: there is not; nothing has been computed.
            LostProcess: another of the processes that compute a stage together has ended.
        """
        check_space(self, stages)
        finished = [self.execute(stage) for stage in stages]
        if all(one.is_tracked for one in finished) or EXPERIMENT in os.environ:
            return finished
        if self.is_main_process:
            self.say(f"Everything is computed and on disk; waiting up to {PATIENCE:.0f} s for MLflow (Ctrl-C ends it)")
            self.store.wait(PATIENCE)
        self.accelerator.wait_for_everyone()
        return [one if one.is_tracked else self.execute(stage) for one, stage in zip(finished, stages, strict=True)]

    @contextmanager
    def turn(self, stage: Stage) -> Iterator[None]:
        """One pipeline at a time computes or delivers ``stage`` in this work directory; the main process sees to it.

        Raises:
            UserError: another one does, and several processes would have to wait for it at a barrier.
        """

        def held(by: str) -> None:
            if self.is_shared:
                raise UserError(
                    f"{stage.title} is being computed in {self.workdir} by {by}; give the same command again after it"
                )
            self.say(f"{stage.title:<16} waits for {by}, which computes it in {self.workdir} (Ctrl-C stops waiting)")

        with one_at_a_time(stage.directory(self.workdir), held) if self.is_main_process else nullcontext():
            yield

    @property
    def is_main_process(self) -> bool:
        """Of those that compute a stage together; the launcher says which, so that this needs no torch."""
        return os.environ.get("RANK", "0") == "0"

    @property
    def is_shared(self) -> bool:
        """Whether several processes compute the same stage together."""
        return os.environ.get("WORLD_SIZE", "1") != "1"

    def say(self, message: str, style: str | None = None) -> None:
        """A line on stderr, in the main process alone."""
        self.console.print(message, style=style, markup=False, highlight=False, soft_wrap=True)

    def inputs_of(self, stage: Stage) -> dict[str, Finished]:
        """Role -> the finished stage whose output ``stage`` reads.

        Raises:
            UserError: one has not run.
        """
        return {role: self.finished(upstream) for role, upstream in stage.inputs.items()}

    def _reused(self, found: Finished) -> Finished:
        self.say(f"{found.title:<16} reused" + (f"  (run {found.run_id[:8]})" if found.is_tracked else ""), style="dim")
        return found

    def _compute(self, stage: Stage) -> None:
        compute = importlib.import_module(f"pipelines.{stage.kind}").compute
        began = time.perf_counter()
        with StageRun.open(self, stage) as run:
            finished = run.finish(compute(run))
        quality = f"  quality {finished.metrics['quality']:.4f}" if "quality" in finished.metrics else ""
        self.say(f"{stage.title:<16} done in {time.perf_counter() - began:.0f} s{quality}")

    def _prepared_data_and_stages(self, kind: str | None) -> tuple[PreparedData, list[Stage]]:
        """Rank 0 prepares, the others wait for the file: a barrier of the process group would time out in minutes."""
        root, config = self.workdir / "data", self.config
        while not self.is_main_process and not is_prepared(config.data, root):
            time.sleep(0.5)
        if not is_prepared(config.data, root):
            if kind not in (None, "baseline", "teacher"):
                self._miss_inputs(kind)
            models = check_models(config)
            data = prepare_data(config.data, root, self.say, check=lambda data: check_data(config, data, models))
            return data, plan(config, data.fingerprint)
        data = prepare_data(config.data, root)
        stages = plan(config, data.fingerprint)
        # A model that has been loaded already is not read again.
        check_data(config, data, check_models(config, [s for s in stages if not find_finished(s, self.workdir)]))
        return data, stages

    def _miss_inputs(self, kind: str) -> None:
        """Raise the error of a stage whose inputs have not run: without data, there are none."""
        for stage in plan(self.config, ""):
            if stage.kind == kind:
                self.inputs_of(stage)
