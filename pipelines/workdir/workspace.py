"""A config in a work directory: its data, its stages, and the finished stages. Imports neither torch nor MLflow."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from rich.console import Console

from distill.data.prepare import is_prepared, prepare_data
from distill.data.prepared_data import PreparedData
from distill.errors import UserError
from distill.io.lock import exclusive_lock
from distill.metrics import check_metrics
from distill.processes import is_main_process, num_processes
from pipelines.config.run_config import RunConfig
from pipelines.workdir.commands import suggest
from pipelines.workdir.loaded_models import check_models
from pipelines.workdir.plan import plan
from pipelines.workdir.preflight import check_data, check_launch, check_size
from pipelines.workdir.pretraining import with_pretrained_tokenizer
from pipelines.workdir.stage import FinishedStage, Stage, find_finished


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
        beside: Callable[[], AbstractContextManager[None]] = nullcontext,
    ):
        """Check the config and prepare the data.

        Args:
            config: the resolved config.
            source: the CONFIG argument of the command line, for the commands that messages suggest.
            directory: the work directory.
            console: for messages.
            kind, ratio: the stages that the command runs; None means all.
            beside: see ``prepare_data``.

        Raises:
            UserError: the config does not fit its data, its models or this machine. Nothing has been written.
        """
        self.source, self.directory, self.console = source, directory, console
        if config.task:
            check_metrics(config.task.metrics)
        self.config, self.pretraining = with_pretrained_tokenizer(config, directory)
        check_size(config, check_launch())
        if kind == "label" and not any(one.distill.reads_cached_labels for one in config.students):
            cause = "distill.hard_fraction is 1, so no student reads soft labels; lower it"
            raise UserError(f"there is nothing to label: {cause}")
        if kind == "answer" and not any(one.distill.targets == "teacher" for one in config.students):
            raise UserError("no student has the teacher's answers as hard labels; set distill.targets to teacher")
        self.data, self.stages = self._prepared_data_and_stages(kind, ratio, beside)

    def select(self, kind: str, ratio: str | None = None) -> list[Stage]:
        """The stages that the command ``kind`` computes, for one ratio or for all."""
        return [stage for stage in self.stages if stage.command == kind and ratio in (None, stage.ratio)]

    def find(self, stage: Stage) -> FinishedStage | None:
        """The record of ``stage`` if it is finished, else None."""
        return find_finished(stage, self.directory)

    def finished(self, stage: Stage) -> FinishedStage:
        """The record of ``stage``.

        Raises:
            UserError: the stage is not finished. The message names the command that computes it.
        """
        found = self.find(stage)
        if found is None:
            ratio = ("--ratio", stage.ratio) if stage.ratio else ()
            before = self.pretraining
            source = before.source if before and stage in before.stages else self.source
            command = suggest(stage.command, source, *ratio, workdir=self.directory)
            raise UserError(
                f"{stage.title} is missing in {self.directory}; compute it with: {command} "
                "(and the same --set and --seed)"
            )
        return found

    def inputs_of(self, stage: Stage) -> dict[str, FinishedStage]:
        """Role -> the record of the finished stage whose output ``stage`` reads.

        Raises:
            UserError: an input is not finished.
        """
        return {role: self.finished(upstream) for role, upstream in stage.inputs.items()}

    def upstream(self, stage: Stage) -> list[Stage]:
        """All stages that ``stage`` depends on, directly or indirectly, each after its inputs."""
        wanted, waiting = set[str](), [*stage.inputs.values()]
        while waiting:
            one = waiting.pop()
            wanted.add(one.fingerprint)
            waiting += one.inputs.values()
        return [one for one in self.stages if one.fingerprint in wanted]

    @contextmanager
    def lock(self, stage: Stage, help_holder: Callable[[], None] | None = None) -> Iterator[None]:
        """Let only one command at a time compute or publish ``stage``. The main process holds the lock.

        Args:
            stage: one of the stages.
            help_holder: is called before a wait, to do a part of the stage's work.

        Raises:
            UserError: another command holds the lock, and this run has several processes. They cannot wait, because
                the barrier at which all but the main process wait has a time limit.
        """

        def on_held(by: str) -> None:
            if num_processes() > 1:
                raise UserError(
                    f"{stage.title} is being computed in {self.directory} by {by}; run the same command again after it"
                )
            if help_holder:
                self.say(f"{stage.title:<16} is being computed in {self.directory} by {by}; this command does a part")
                help_holder()
                return
            self.say(f"{stage.title:<16} waits for {by}, which computes it in {self.directory} (Ctrl-C stops waiting)")

        with exclusive_lock(stage.directory(self.directory), on_held) if is_main_process() else nullcontext():
            yield

    def say(self, message: str, style: str | None = None) -> None:
        """Print a line on stderr, in the main process only."""
        self.console.print(message, style=style, markup=False, highlight=False, soft_wrap=True)

    def _prepared_data_and_stages(
        self, kind: str | None, ratio: str | None, beside: Callable[[], AbstractContextManager[None]]
    ) -> tuple[PreparedData, list[Stage]]:
        """Prepare the data in the main process. The others wait for its file: a barrier would time out in minutes."""
        root, config, task = self.directory / "data", self.config, self.config.task
        before = self.pretraining.stages if self.pretraining else ()
        if self.pretraining:  # before anything is prepared
            for stage in plan(config, "", before):
                if "pretrained" in stage.inputs:
                    self.finished(stage.inputs["pretrained"])
        while not is_main_process() and not is_prepared(config.data, root, task):
            time.sleep(0.5)
        if not is_prepared(config.data, root, task):
            if kind not in (None, "baseline", "teacher"):
                self._raise_missing_inputs(kind, ratio)
            models = check_models(config, say=self.say)
            data = prepare_data(
                config.data, root, self.say, lambda data: check_data(config, data, models), beside, task
            )
            return data, plan(config, data.fingerprint, before)
        data = prepare_data(config.data, root, task=task)
        stages = plan(config, data.fingerprint, before)
        # Only unfinished stages read the weights of their models.
        check_data(config, data, check_models(config, [s for s in stages if not self.find(s)], self.say))
        return data, stages

    def _raise_missing_inputs(self, kind: str, ratio: str | None) -> None:
        """Raise the UserError of a stage without inputs: without prepared data, no stage has run."""
        for stage in plan(self.config, "", self.pretraining.stages if self.pretraining else ()):
            if stage.command == kind and ratio in (None, stage.ratio):
                self.inputs_of(stage)
