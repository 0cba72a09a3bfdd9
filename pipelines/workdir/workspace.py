"""A config in a work directory: its data, its stages, the finished ones. Needs neither torch nor MLflow."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from rich.console import Console

from distill.data.prepare import is_prepared, prepare_data
from distill.data.prepared_data import PreparedData
from distill.errors import UserError
from distill.io.lock import one_at_a_time
from pipelines.config.run_config import RunConfig
from pipelines.workdir.commands import suggest
from pipelines.workdir.loaded_models import check_models
from pipelines.workdir.plan import plan
from pipelines.workdir.preflight import check_data, check_launch, check_size
from pipelines.workdir.stage import Finished, Stage, find_finished


class Workspace:
    """A config, its prepared data, and the directory of its stages."""

    def __init__(
        self,
        config: RunConfig,
        source: str,
        directory: Path,
        console: Console,
        *,
        kind: str | None = None,
        ratio: str | None = None,
    ):
        """Prepare the data, once everything that can be known to be wrong has been looked for.

        Args:
            source: the CONFIG that the user named, for commands that messages suggest.
            kind, ratio: the only stages that are asked for; None for all.

        Raises:
            UserError: the config does not fit its data, its models or this machine; nothing has been written.
        """
        self.config, self.source, self.directory, self.console = config, source, directory, console
        check_size(config, check_launch())
        if kind == "label" and not any(one.distill.reads_cached_labels for one in config.students):
            cause = "distill.hard_fraction is 1, so that no student reads soft labels; lower it"
            raise UserError(f"there is nothing to label: {cause}")
        self.data, self.stages = self._prepared_data_and_stages(kind, ratio)

    def select(self, kind: str, ratio: str | None = None) -> list[Stage]:
        """The stages of one kind, all ratios or one."""
        return [stage for stage in self.stages if stage.kind == kind and ratio in (None, stage.ratio)]

    def find(self, stage: Stage) -> Finished | None:
        """The finished run of ``stage``, if there is one."""
        return find_finished(stage, self.directory)

    def finished(self, stage: Stage) -> Finished:
        """The finished run of ``stage``.

        Raises:
            UserError: it has not run; the message names the command that makes it.
        """
        found = self.find(stage)
        if found is None:
            ratio = ("--ratio", stage.ratio) if stage.ratio else ()
            command = suggest(stage.kind, self.source, *ratio, workdir=self.directory)
            raise UserError(
                f"{stage.title} is missing in {self.directory}; make it with: {command} (and the same --set and --seed)"
            )
        return found

    def inputs_of(self, stage: Stage) -> dict[str, Finished]:
        """Role -> the finished stage whose output ``stage`` reads.

        Raises:
            UserError: one has not run.
        """
        return {role: self.finished(upstream) for role, upstream in stage.inputs.items()}

    def upstream(self, stage: Stage) -> list[Stage]:
        """The stages that ``stage`` reads, and those that these read, each after its inputs."""
        wanted, waiting = set[str](), [*stage.inputs.values()]
        while waiting:
            one = waiting.pop()
            wanted.add(one.fingerprint)
            waiting += one.inputs.values()
        return [one for one in self.stages if one.fingerprint in wanted]

    @contextmanager
    def lock(self, stage: Stage) -> Iterator[None]:
        """Let one command at a time compute or publish ``stage`` here; the main process holds the lock.

        Raises:
            UserError: another one does, and several processes would have to wait for it at a barrier.
        """

        def held(by: str) -> None:
            if self.is_shared:
                raise UserError(
                    f"{stage.title} is being computed in {self.directory} by {by}; give the same command again after it"
                )
            self.say(f"{stage.title:<16} waits for {by}, which computes it in {self.directory} (Ctrl-C stops waiting)")

        with one_at_a_time(stage.directory(self.directory), held) if self.is_main_process else nullcontext():
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

    def _prepared_data_and_stages(self, kind: str | None, ratio: str | None) -> tuple[PreparedData, list[Stage]]:
        """Rank 0 prepares, the others wait for the file: a barrier of the process group would time out in minutes."""
        root, config = self.directory / "data", self.config
        while not self.is_main_process and not is_prepared(config.data, root):
            time.sleep(0.5)
        if not is_prepared(config.data, root):
            if kind not in (None, "baseline", "teacher"):
                self._miss_inputs(kind, ratio)
            models = check_models(config)
            data = prepare_data(config.data, root, self.say, check=lambda data: check_data(config, data, models))
            return data, plan(config, data.fingerprint)
        data = prepare_data(config.data, root)
        stages = plan(config, data.fingerprint)
        # A model that has been loaded already is not read again.
        check_data(config, data, check_models(config, [s for s in stages if not self.find(s)]))
        return data, stages

    def _miss_inputs(self, kind: str, ratio: str | None) -> None:
        """Raise the error of a stage whose inputs have not run: without data, there are none."""
        for stage in plan(self.config, ""):
            if stage.kind == kind and ratio in (None, stage.ratio):
                self.inputs_of(stage)
