"""Run stages: reuse the finished ones, say which command makes a missing one, compute the rest."""

import importlib
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console

from distill.disk import named_when_full
from distill.divergence import check_figures, check_losses
from distill.errors import DiskFull, UserError
from distill.files import make_directory, new_directory, write_json
from distill.prepare import PreparedData, is_prepared, prepare_data
from pipelines.config import RunConfig
from pipelines.plan import plan
from pipelines.preflight import check_data, check_launch, check_models, check_size
from pipelines.progress import Bar
from pipelines.space import check_space
from pipelines.stage import Finished, Stage, find_finished
from pipelines.store_uri import check_store

if TYPE_CHECKING:
    import numpy as np
    from accelerate import Accelerator
    from transformers import PreTrainedModel

    from distill.training import Hooks
    from pipelines.tracking import Store, TrackedRun


@dataclass
class Outcome:
    """What a stage's ``compute`` returns: final figures, facts, and the directory of its model if it made one.

    MLflow follows lineage through models alone, so soft labels count as one there.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    model: Path | None = None
    not_of_model: set[str] = field(default_factory=set)  # figures of the run that do not describe its saved model


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
        check_size(config, check_launch())
        check_store(workdir)
        self.stages = plan(config, "")  # until the data is known
        if kind and not self.select(kind):
            cause = "distill.hard_fraction is 1, so that no student reads soft labels; lower it"
            raise UserError(f"there is nothing to label: {cause}")
        if kind not in (None, "baseline", "teacher") and not is_prepared(config.data, workdir / "data"):
            for stage in self.select(kind):
                self._inputs(stage)  # without data there are none, and the message names the first
        self.data = self._prepare()
        self.stages = plan(config, self.data.fingerprint)

    @cached_property
    def accelerator(self) -> "Accelerator":
        from distill.training import make_accelerator

        return make_accelerator(self.config.precision)

    @cached_property
    def store(self) -> "Store":
        from pipelines.tracking import Store

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
            ratio = f" --ratio {stage.ratio}" if stage.ratio else ""
            raise UserError(
                f"{stage.title} is missing in {self.workdir}; make it with: "
                f"switch-distill {stage.kind} {self.source}{ratio} (and the same --set, --seed and --workdir)"
            )
        return found

    def execute(self, stage: Stage) -> Finished:
        """Reuse ``stage`` if it is finished, else compute it from its finished inputs."""
        if found := find_finished(stage, self.workdir):
            self.say(f"{stage.title:<16} reused  (run {found.run_id[:8]})", style="dim")
            return found
        inputs = self._inputs(stage)
        compute = importlib.import_module(f"pipelines.{stage.kind}").compute
        began = time.perf_counter()
        # Everything else that a stage writes is named by whoever writes it.
        with named_when_full(self.workdir / "mlflow.db"), StageRun.open(self, stage, inputs) as run:
            finished = run.finish(compute(run))
        if self.accelerator.is_main_process:
            finished = finished.save()  # from now on the stage is a finished one
            shutil.rmtree(finished.directory / "checkpoints", ignore_errors=True)
        self.accelerator.wait_for_everyone()
        quality = f"  quality {finished.metrics['quality']:.4f}" if "quality" in finished.metrics else ""
        self.say(f"{stage.title:<16} done in {time.perf_counter() - began:.0f} s{quality}")
        return finished

    def execute_all(self, stages: list[Stage]) -> list[Finished]:
        """``execute`` each, if there is space for all of them.

        Raises:
            DiskFull: there is not; nothing has been computed.
        """
        check_space(self, stages)
        return [self.execute(stage) for stage in stages]

    def say(self, message: str, style: str | None = None) -> None:
        """A line on stderr, in the main process alone."""
        self.console.print(message, style=style, markup=False, highlight=False, soft_wrap=True)

    def _inputs(self, stage: Stage) -> dict[str, Finished]:
        return {role: self.finished(upstream) for role, upstream in stage.inputs.items()}

    def _prepare(self) -> PreparedData:
        """Rank 0 prepares, the others wait for the file: a barrier of the process group would time out in minutes."""
        root, config = self.workdir / "data", self.config
        while os.environ.get("RANK", "0") != "0" and not is_prepared(config.data, root):
            time.sleep(0.5)
        if not is_prepared(config.data, root):
            words = check_models(config, self.stages)
            return prepare_data(config.data, root, self.say, check=lambda data: check_data(config, data, words))
        data = prepare_data(config.data, root)
        stages = plan(config, data.fingerprint)  # a model that has been loaded already is not read again
        words = check_models(config, [stage for stage in stages if not find_finished(stage, self.workdir)])
        check_data(config, data, words)
        return data


@dataclass
class StageRun:
    """A stage that is being computed: its inputs, its directory, its MLflow run (in the main process), its bar."""

    pipeline: Pipeline
    stage: Stage
    inputs: dict[str, Finished]
    directory: Path
    tracked: "TrackedRun | None"
    bar: Bar

    @classmethod
    @contextmanager
    def open(cls, pipeline: Pipeline, stage: Stage, inputs: dict[str, Finished]) -> Iterator["StageRun"]:
        """Start or continue the stage's MLflow run, and end it as FINISHED, FAILED or KILLED."""
        directory = stage.directory(pipeline.workdir)
        new, tracked = not directory.exists(), None
        if pipeline.accelerator.is_main_process:
            _ = pipeline.store  # where it cannot be used, no directory is left
            make_directory(directory)
            tracked = _track(pipeline, stage, inputs, directory)
        pipeline.accelerator.wait_for_everyone()
        status = "FAILED"
        try:
            with Bar(pipeline.console, stage.title) as bar:
                yield cls(pipeline, stage, inputs, directory, tracked, bar)
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            raise
        except (UserError, DiskFull):
            if tracked and new and not list(directory.glob("checkpoints/*/")):
                shutil.rmtree(directory)  # it could not begin: there is nothing to go on from
            raise
        finally:
            if tracked:
                tracked.close(status)

    @cached_property
    def config(self) -> RunConfig:
        """That of the variant which this is a stage of."""
        return self.pipeline.config.of_variant(self.stage.variant)

    @property
    def data(self) -> PreparedData:
        return self.pipeline.data

    @property
    def accelerator(self) -> "Accelerator":
        return self.pipeline.accelerator

    def hooks(self, evaluate: Callable[[], dict[str, float]], prefix: str = "") -> "Hooks":
        """For the training loop: the bar and the curves, those of ``evaluate`` (``eval/quality``, ...) in between."""
        from distill.training import Hooks

        def on_metrics(step: int, metrics: dict[str, float]) -> None:
            self.log_curve(step, {f"{prefix}train/{name}": value for name, value in metrics.items()})

        def on_evaluation(step: int) -> None:
            values = check_figures(evaluate())
            self.log_curve(step, {f"{prefix}{name}": value for name, value in values.items()})

        def say(text: str) -> None:
            self.pipeline.say(f"{self.stage.title:<16} {text}")

        return Hooks(on_step=self.bar.update, on_metrics=on_metrics, evaluate=on_evaluation, say=say)

    def log_curve(self, step: int, metrics: dict[str, float]) -> None:
        if self.tracked:
            self.tracked.log_curve(step, metrics)

    def save_losses(self, losses: "np.ndarray", name: str = "validation_losses") -> None:
        """Keep the loss of every validation example, here and as an artifact: the report is made of these.

        Raises:
            TrainingDiverged: one is not finite, so that the model has no quality.
        """
        check_losses(losses.tolist(), self.stage.title)
        if self.tracked:
            write_json(self.directory / f"{name}.json", losses.tolist())
            self.tracked.log_file(self.directory / f"{name}.json")

    def save_model(self, model: "PreTrainedModel") -> Path:
        """Write a dense model and the tokenizer to ``model/`` (in the main process); the others wait for it."""
        path = self.directory / "model"
        if self.tracked:
            with new_directory(path) as beside:
                model.save_pretrained(beside)
                self.data.tokenizer.save_pretrained(beside)
        self.accelerator.wait_for_everyone()
        return path

    def finish(self, outcome: Outcome) -> Finished:
        """Log figures and model to MLflow, and register a student."""
        stage, model_id, uri = self.stage, None, None
        figures = {name: value for name, value in outcome.metrics.items() if math.isfinite(value)}
        if unknown := sorted(set(outcome.metrics) - set(figures)):
            self.pipeline.say(f"{stage.title:<16} left out, because they are no numbers: {', '.join(unknown)}")
        if self.tracked and outcome.model:
            made = {"distill": "student", "label": "labels"}.get(stage.kind, stage.kind)
            name = "-".join(filter(None, (made, stage.ratio, stage.variant)))
            facts = {"ratio": stage.ratio, "seed": stage.seed, "fingerprint": stage.fingerprint}
            student, form = made == "student", "soft-labels" if made == "labels" else "seq2seq"
            model_id, uri = self.tracked.log_model_output(name, outcome.model, facts, upload=student, form=form)
            if student:
                registered = f"{self.config.name}-{name}"
                uri = f"models:/{registered}/{self.tracked.register(model_id, registered, facts)}"
        if self.tracked:
            own = {name: value for name, value in figures.items() if name not in outcome.not_of_model}
            self.tracked.log_results(own, model_id=model_id)
            self.tracked.log_results({name: figures[name] for name in figures.keys() & outcome.not_of_model})
        run_id = self.tracked.run_id if self.tracked else ""
        return Finished(stage.title, stage.fingerprint, run_id, model_id, uri, figures, outcome.facts, self.directory)


def _track(pipeline: Pipeline, stage: Stage, inputs: dict[str, Finished], directory: Path) -> "TrackedRun":
    from distill.machine import machine_facts
    from pipelines.tracking import COLOURS, TrackedRun

    config, data = pipeline.config, pipeline.data
    tags = {
        "pipeline": config.name,
        "stage": stage.kind,
        "fingerprint": stage.fingerprint,
        "data.digest": data.digest,
        "mlflow.source.name": f"switch-distill {stage.kind} {config.name}",
        **machine_facts(pipeline.accelerator),
    }
    if stage.ratio:
        number = list(config.teacher.ratios).index(stage.ratio)
        tags |= {"ratio": stage.ratio, "mlflow.runColor": COLOURS[number % len(COLOURS)]}
    tags |= {key: str(value) for key, value in (("seed", stage.seed), ("variant", stage.variant)) if value is not None}
    tracked = TrackedRun(pipeline.store, directory, stage.title, tags)
    tracked.log_params({**{key: tags[key] for key in ("ratio", "variant") if key in tags}, **stage.settings})
    tracked.log_text("config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    if stage.kind not in ("init", "report") or (stage.kind == "init" and config.student.is_calibrated):
        training = {"documents": data.train_documents, "tokens": data.train_tokens, "digest": data.train_digest}
        tracked.log_data(data.name, data.digest, "training", training)
    if stage.kind not in ("init", "label"):
        part = config.data.measured
        held_out = {unit: getattr(data, f"{part}_{unit}") for unit in ("documents", "tokens")}
        tracked.log_data(f"{data.name}-{part}", getattr(data, f"{part}_digest"), "validation", held_out)
    tracked.log_model_inputs({role: done.model_id for role, done in inputs.items() if done.model_id})
    return tracked
