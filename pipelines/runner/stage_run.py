"""One stage while it is computed: what its ``compute`` gets, and what becomes of what that returns."""

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from distill.data.prepared_data import PreparedData
from distill.errors import DiskFull, UserError
from distill.io.files import make_directory, new_directory, write_json, write_text
from distill.models.save import save_t5, save_tokenizer
from distill.training.divergence import check_figures, check_losses
from pipelines.config.run_config import RunConfig
from pipelines.runner.progress import Bar
from pipelines.runner.publish import Publisher
from pipelines.tracking.metric_log import MetricLog
from pipelines.tracking.run import TrackedRun
from pipelines.workdir.stage import Finished, Stage
from pipelines.workdir.workspace import Workspace

if TYPE_CHECKING:
    import numpy as np
    from accelerate import Accelerator
    from transformers import PreTrainedModel

    from distill.training.loop import Hooks


@dataclass
class Outcome:
    """What a stage's ``compute`` returns: final figures and facts."""

    metrics: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    not_of_model: list[str] = field(default_factory=list)  # figures of the run that do not describe its saved model


@dataclass
class StageRun:
    """A stage that is being computed: its inputs, its directory, its bar; in the main process its curves.

    ``tracked`` is its MLflow run, in the main process as long as the store answered when the stage began.
    """

    workspace: Workspace
    accelerator: "Accelerator"
    publisher: Publisher
    stage: Stage
    inputs: dict[str, Finished]
    directory: Path
    tracked: TrackedRun | None
    curves: MetricLog | None
    bar: Bar

    @classmethod
    @contextmanager
    def open(
        cls, workspace: Workspace, accelerator: "Accelerator", publisher: Publisher, stage: Stage
    ) -> Iterator["StageRun"]:
        """Start or continue the stage's MLflow run; where the block fails, end it as FAILED or KILLED."""
        directory = stage.directory(workspace.directory)
        new, tracked, curves = not directory.exists(), None, None
        if workspace.is_main_process:
            _ = publisher.store  # where it cannot be used, no directory is left
            make_directory(directory)
            config = workspace.config.model_dump(mode="json")
            write_text(directory / "config.yaml", yaml.safe_dump(config, sort_keys=False))
            with publisher.unless_unreachable():
                tracked = publisher.begin(stage)
            curves = MetricLog(directory / "metrics.jsonl", tracked.send if tracked else None)
        accelerator.wait_for_everyone()
        status = "FAILED"
        try:
            with Bar(workspace.console, stage.title) as bar:
                inputs = workspace.inputs_of(stage)
                yield cls(workspace, accelerator, publisher, stage, inputs, directory, tracked, curves, bar)
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            raise
        except (UserError, DiskFull):
            begun = [*directory.glob("checkpoints/*/"), *directory.glob("stage.json")]
            if curves and new and not begun:
                shutil.rmtree(directory)  # there is nothing to go on from
            raise
        finally:
            if curves:
                curves.close()
            if tracked and status != "FINISHED":
                tracked.close(status)

    @cached_property
    def config(self) -> RunConfig:
        """That of the variant which this is a stage of."""
        return self.workspace.config.of_variant(self.stage.variant)

    @property
    def data(self) -> PreparedData:
        return self.workspace.data

    def hooks(self, evaluate: Callable[[], dict[str, float]], prefix: str = "") -> "Hooks":
        """For the training loop: the bar and the curves, those of ``evaluate`` (``eval/quality``, ...) in between."""
        from distill.training.loop import Hooks

        def on_metrics(step: int, metrics: dict[str, float]) -> None:
            self.log_curve(step, {f"{prefix}train/{name}": value for name, value in metrics.items()})

        def on_evaluation(step: int) -> None:
            values = check_figures(evaluate())
            self.log_curve(step, {f"{prefix}{name}": value for name, value in values.items()})

        def say(text: str) -> None:
            self.workspace.say(f"{self.stage.title:<16} {text}")

        def on_course(number: int) -> None:
            if self.curves:
                self.curves.begin_course(number)

        return Hooks(
            on_step=self.bar.update, on_metrics=on_metrics, evaluate=on_evaluation, on_course=on_course, say=say
        )

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process that writes files."""
        return self.curves is not None

    def log_curve(self, step: int, metrics: dict[str, float]) -> None:
        """A point of a curve: one line in a local file, sent to MLflow later; see ``MetricLog.log``."""
        if self.curves:
            self.curves.log(step, metrics)

    def save_losses(self, losses: "np.ndarray", name: str = "losses") -> None:
        """Keep the loss of every test example: the report is made of these.

        Raises:
            TrainingDiverged: one is not finite, so that the model has no quality.
        """
        check_losses(losses.tolist(), self.stage.title)
        if self.is_main_process:
            write_json(self.directory / f"{name}.json", losses.tolist())

    def save_model(self, model: "PreTrainedModel") -> None:
        """Write a dense model and the tokenizer to ``model/`` (in the main process); the others wait for it."""
        if self.is_main_process:
            with new_directory(self.directory / "model") as tmp_dir:
                save_t5(model, tmp_dir)
                save_tokenizer(self.data.tokenizer, tmp_dir)
        self.accelerator.wait_for_everyone()

    def finish(self, outcome: Outcome) -> Finished:
        """The stage is finished once it is on disk; then MLflow gets it."""
        stage = self.stage
        figures = {name: value for name, value in outcome.metrics.items() if math.isfinite(value)}
        if unknown := sorted(set(outcome.metrics) - set(figures)):
            self.workspace.say(f"{stage.title:<16} left out, because they are no numbers: {', '.join(unknown)}")
        finished = Finished(
            stage.title,
            stage.fingerprint,
            run_id="",
            model_id=None,
            model_uri=None,
            metrics=figures,
            facts=outcome.facts,
            directory=self.directory,
            not_of_model=[name for name in outcome.not_of_model if name in figures],
        )
        if self.curves:
            self.curves.close()
            finished.save()
            shutil.rmtree(self.directory / "checkpoints", ignore_errors=True)
            if self.tracked or stage.kind != "report":  # a report of runs that it does not know is made again
                with self.publisher.unless_unreachable():
                    self.publisher.publish(stage, self.tracked)
        return finished
