"""One stage while it is computed: the argument of its ``compute``, and the handling of the result."""

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
from distill.io.files import make_directory, new_directory, remove_temporary, write_json, write_text
from distill.models.save import save_t5, save_tokenizer
from distill.processes import is_main_process
from distill.training.divergence import check_figures, check_losses
from pipelines.config.run_config import RunConfig
from pipelines.runner.progress import Bar
from pipelines.runner.publish import Publisher
from pipelines.tracking.metric_log import MetricLog
from pipelines.tracking.tracked_run import TrackedRun
from pipelines.workdir.stage import FinishedStage, Stage
from pipelines.workdir.workspace import Workspace

if TYPE_CHECKING:
    import numpy as np
    from accelerate import Accelerator
    from transformers import T5ForConditionalGeneration

    from distill.training.loop import Hooks


@dataclass
class Outcome:
    """The result of a stage's ``compute``: final metrics and facts."""

    metrics: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    not_of_model: list[str] = field(default_factory=list)  # metrics of the run that do not describe its saved model


@dataclass
class StageRun:
    """A stage that is being computed: its inputs, its directory, its progress bar and its curves.

    ``curves`` is None except in the main process. ``tracked``, the MLflow run, is None except in the main process, and
    also there if the store was unreachable when the stage began.
    """

    workspace: Workspace
    accelerator: "Accelerator"
    publisher: Publisher
    stage: Stage
    inputs: dict[str, FinishedStage]
    directory: Path
    tracked: TrackedRun | None
    curves: MetricLog | None
    bar: Bar

    @classmethod
    @contextmanager
    def open(
        cls, workspace: Workspace, accelerator: "Accelerator", publisher: Publisher, stage: Stage
    ) -> Iterator["StageRun"]:
        """Start or continue the stage's MLflow run. If the block fails, end the run as FAILED or KILLED.

        Raises:
            UserError: the store cannot be used, or an input is not finished. A new stage leaves no directory behind.
        """
        directory = stage.directory(workspace.directory)
        new, tracked, curves, status = not directory.exists(), None, None, "FAILED"
        try:
            if is_main_process():
                _ = publisher.store  # raises before the directory is made if the store cannot be used
                make_directory(directory)
                remove_temporary(directory)
                config = workspace.config.model_dump(mode="json")
                write_text(directory / "config.yaml", yaml.safe_dump(config, sort_keys=False))
                with publisher.unless_unreachable():
                    tracked = publisher.begin(stage)
                curves = MetricLog(directory / "metrics.jsonl", tracked.send if tracked else None)
            accelerator.wait_for_everyone()
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
                shutil.rmtree(directory)  # it holds no checkpoint to continue from
            raise
        finally:
            if curves:
                curves.close()
            if tracked and status != "FINISHED":
                tracked.close(status)

    @cached_property
    def config(self) -> RunConfig:
        """The config of this stage's variant."""
        return self.workspace.config.of_variant(self.stage.variant)

    @property
    def ratio(self) -> str:
        """The ratio of this stage. A baseline and a report have none."""
        assert self.stage.ratio is not None
        return self.stage.ratio

    @property
    def seed(self) -> int:
        """The seed of this stage. A loaded teacher, its labels and a report have none."""
        assert self.stage.seed is not None
        return self.stage.seed

    @property
    def data(self) -> PreparedData:
        """The prepared data of the workspace."""
        return self.workspace.data

    def hooks(
        self,
        evaluate: Callable[[], dict[str, float]],
        validate: Callable[[], float] | None = None,
        prefix: str = "",
    ) -> "Hooks":
        """Hooks of the training loop, which update the progress bar and log the curves.

        Args:
            evaluate: called at each evaluation; returns points of curves such as ``eval/quality``.
            validate: returns the quality on the validation split, for early stopping.
            prefix: put before the name of every curve.
        """
        from distill.training.loop import Hooks

        def on_metrics(step: int, metrics: dict[str, float]) -> None:
            self.log_curve(step, {f"train/{name}": value for name, value in metrics.items()}, prefix)

        def on_evaluation(step: int) -> None:
            self.log_curve(step, check_figures(evaluate()), prefix)

        def say(text: str) -> None:
            self.workspace.say(f"{self.stage.title:<16} {text}")

        def on_attempt(number: int) -> None:
            if self.curves:
                self.curves.begin_attempt(number, prefix)

        return Hooks(
            on_step=self.bar.update,
            on_metrics=on_metrics,
            evaluate=on_evaluation,
            validate=validate,
            on_attempt=on_attempt,
            say=say,
        )

    def log_curve(self, step: int, metrics: dict[str, float], prefix: str = "") -> None:
        """Log a point of each curve in a local file. A thread sends it to MLflow later; see ``MetricLog.log``."""
        if self.curves:
            self.curves.log(step, metrics, prefix)

    def save_losses(self, losses: "np.ndarray", name: str = "losses") -> None:
        """Write the loss of every evaluated example, which the report reads.

        Args:
            losses: [examples], nats per target token.
            name: of the file, without ``.json``.

        Raises:
            TrainingDiverged: a loss is not finite.
        """
        check_losses(losses.tolist(), self.stage.title)
        if is_main_process():
            write_json(self.directory / f"{name}.json", losses.tolist())

    def save_model(self, model: "T5ForConditionalGeneration") -> None:
        """Write a dense model and the tokenizer to ``model/`` in the main process. The other processes wait for it."""
        if is_main_process():
            with new_directory(self.directory / "model") as tmp_dir:
                save_t5(model, tmp_dir)
                save_tokenizer(self.data.tokenizer, tmp_dir)
        self.accelerator.wait_for_everyone()

    def finish(self, outcome: Outcome) -> FinishedStage:
        """Write the record of the finished stage to disk, then publish it to MLflow.

        Returns:
            The record, whose ``run_id`` is empty because it was made before the publishing.
        """
        stage = self.stage
        figures = {name: value for name, value in outcome.metrics.items() if math.isfinite(value)}
        if unknown := sorted(set(outcome.metrics) - set(figures)):
            self.workspace.say(f"{stage.title:<16} left out metrics that are not finite: {', '.join(unknown)}")
        finished = FinishedStage(
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
            if self.tracked or stage.kind != "report":  # an unpublished report is computed again with the run ids
                with self.publisher.unless_unreachable():
                    self.publisher.publish(stage, self.tracked)
        return finished
