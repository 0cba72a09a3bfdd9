"""Copy stages from their directories to MLflow.

A stage writes all of its output to disk first. If the store is unreachable, the stage is published later: by the next
stage, at the end of the command, or by the next run of the same command.
"""

import contextlib
import gc
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

from distill.errors import ExpectedError
from distill.io.disk import is_full
from pipelines.reporting.registry import log_comparison
from pipelines.runner.stage_data import task_data
from pipelines.tracking.data_source import mlflow_source
from pipelines.tracking.store import Store
from pipelines.tracking.store_uri import StoreError, cause_of, label
from pipelines.tracking.tracked_run import COLOURS, TrackedRun, describe_run
from pipelines.tracking.view import publish_view
from pipelines.workdir.plan import training_of
from pipelines.workdir.stage import OPTIONAL_REPORT_FILES, REPORT_FILES, FinishedStage, Stage
from pipelines.workdir.teacher_files import Reference, reference_of
from pipelines.workdir.workspace import Workspace

# Files that become artifacts of the stage's run, and directories that become models. MLflow records lineage only
# through models, so soft labels are logged as a model too.
_ARTIFACTS = (
    *("*losses.json", "*answers.json", "routing.png", "labels/labels.json"),
    *(*REPORT_FILES, *OPTIONAL_REPORT_FILES, "documents.json"),
)
_MODELS = ("model", "labels", "answers")
_REVISIONS = ("revision", "tokenizer_revision")  # commits of data and tokenizer on the hub


class Unpublished(ExpectedError, RuntimeError):
    """MLflow lacks finished stages. The message names them, the reason, and the command that publishes them."""


class Publisher:
    """Publishes the stages of a workspace to MLflow."""

    def __init__(self, workspace: Workspace, machine: Callable[[], dict[str, str]]):
        """``machine`` returns tags with the facts of this machine that results depend on."""
        self.workspace, self.machine = workspace, machine
        self.unreachable: str | None = None  # reason of the last failure, None after a success

    @cached_property
    def store(self) -> Store:
        store = Store(self.workspace.directory, self.workspace.config.name)
        gc.freeze()  # exempts MLflow's modules from the garbage collections that accelerate runs after each training
        return store

    @cached_property
    def _source(self) -> tuple[str, str]:
        data = self.workspace.data
        return mlflow_source(data.name, data.revision, Path(data.directory))

    @contextlib.contextmanager
    def unless_unreachable(self) -> Iterator[None]:
        """Suppress StoreError in the block, and keep its reason in ``self.unreachable``.

        Raises:
            StoreError: the store failed because a disk is full.
        """
        try:
            yield
        except StoreError as error:
            if is_full(error):
                raise
            if not self.unreachable:
                self.workspace.say(f"MLflow is unreachable, results are kept on disk: {error.cause}")
            self.unreachable = error.cause

    def check_published(self, command: str) -> None:
        """Check that MLflow has every finished stage of the workspace.

        Args:
            command: the command that publishes the missing stages, for the error message.

        Raises:
            Unpublished: MLflow lacks a stage.
        """
        known = [found for stage in self.workspace.stages if (found := self.workspace.find(stage))]
        if titles := ", ".join(one.title for one in known if not one.is_tracked):
            raise Unpublished(
                f"MLflow ({label()}) lacks {titles}: {self.unreachable}; weights, losses and curves are kept in "
                f"{self.workspace.directory / 'stages'}. When MLflow is back, publish them without new training with: "
                f"{command}"
            )

    def begin(self, stage: Stage) -> TrackedRun:
        """Publish the stages that ``stage`` reads, then start or continue its MLflow run.

        Raises:
            StoreError: the store is unreachable. The description of the run is kept in the stage's directory.
        """
        if not self.workspace.find(stage):  # else run.json describes where it was computed
            describe_run(stage.directory(self.workspace.directory), self._tags(stage))
        for upstream in self.workspace.upstream(stage):
            if not self.workspace.finished(upstream).is_tracked:
                with self.workspace.lock(upstream):
                    if not self.workspace.finished(upstream).is_tracked:  # the holder of the lock may have published it
                        self._send(upstream, self._start(upstream), late=True)
        try:
            return self._start(stage)
        except (KeyboardInterrupt, SystemExit):  # the run may have begun, and only its directory knows which it is
            with contextlib.suppress(StoreError):
                TrackedRun(self.store, stage.directory(self.workspace.directory), stage.title).close("KILLED")
            raise

    def publish(self, stage: Stage, tracked: TrackedRun | None = None) -> None:
        """Publish the finished ``stage``. The caller holds the lock of the stage.

        Args:
            tracked: the stage's MLflow run, if it has begun.

        Raises:
            StoreError: the store is unreachable.
        """
        self._send(stage, tracked or self.begin(stage), late=tracked is None)

    def _start(self, stage: Stage) -> TrackedRun:
        config, data, tags = self.workspace.config, self.workspace.data, self._tags(stage)
        directory = stage.directory(self.workspace.directory)
        tracked = TrackedRun(self.store, directory, stage.title)
        tracked.log_params({**{key: tags[key] for key in ("ratio", "variant") if key in tags}, **stage.settings})
        tracked.log_file(directory / "config.yaml")
        student = config.of_variant(stage.variant).student
        if stage.kind not in ("init", "report") or (stage.kind == "init" and student.reads_text):
            profile = {**asdict(data.parts["train"]), **data.lost, "most_lost": data.round_trip.most_lost}
            tracked.log_data(data.name, data.digest, "train", self._source, profile)
        if stage.kind not in ("init", "answer", "label"):
            for split in self._held_out(stage):
                held_out = data.parts[split]
                tracked.log_data(f"{data.name}-{split}", held_out.digest, split, self._source, asdict(held_out))
        if config.task and config.task.unlabelled and {stage.kind, *stage.inputs} & {"answer"}:
            commit = task_data(data).task["unlabelled_revision"]
            source = mlflow_source(config.task.unlabelled, commit, Path(data.directory))
            inputs = data.parts["unlabelled"]
            tracked.log_data(config.task.unlabelled, inputs.digest, "unlabelled", source, asdict(inputs))
        models = {role: self.workspace.finished(upstream).model_id for role, upstream in stage.inputs.items()}
        tracked.log_model_inputs({role: model_id for role, model_id in models.items() if model_id})
        return tracked

    def _held_out(self, stage: Stage) -> list[str]:
        """The splits that a stage evaluates its model on; with early stopping also the validation split."""
        training = training_of(self.workspace.config, stage)
        stops_early = training is not None and training.patience is not None
        return list(dict.fromkeys([self.workspace.config.data.eval_split, *["validation"] * stops_early]))

    def _send(self, stage: Stage, tracked: TrackedRun, *, late: bool) -> None:
        """Send artifacts, model and metrics. ``late``: the MLflow run begins only now, after the stage has finished."""
        found = self.workspace.finished(stage)
        for path in sorted(path for pattern in _ARTIFACTS for path in found.directory.glob(pattern)):
            tracked.log_file(path)
        model = next((one for name in _MODELS if (one := found.directory / name).is_dir()), None)
        if model and late:  # the files may have changed since the stage finished
            found.read(model.name)
        if files := model or reference_of(found):
            found = self._send_model(stage, files, found, tracked)
        own = {name: value for name, value in found.metrics.items() if name not in found.not_of_model}
        tracked.log_results(own, model_id=found.model_id)
        tracked.log_results({name: found.metrics[name] for name in found.not_of_model})
        if stage.kind == "label":
            tracked.log_params({"sha256": found.facts["sha256"]})
        if stage.kind == "report":
            self._send_report(stage, found, tracked)
        tracked.close("FINISHED")
        replace(found, run_id=tracked.run_id).save()  # marks the stage as published
        self.unreachable = None
        if late:
            self.workspace.say(f"{stage.title:<16} published to MLflow  (run {tracked.run_id[:8]})")

    def _send_model(
        self, stage: Stage, files: Path | Reference, found: FinishedStage, tracked: TrackedRun
    ) -> FinishedStage:
        """Log a model, and upload and register it if it is a student.

        Returns:
            ``found`` with the model's id and URI.
        """
        made = {"distill": "student", "label": "labels", "answer": "answers"}.get(stage.kind, stage.kind)
        name = "-".join(filter(None, (made, stage.ratio, stage.variant)))
        facts = {"ratio": stage.ratio, "seed": stage.seed, "fingerprint": stage.fingerprint}
        student, form = made == "student", {"labels": "soft-labels", "answers": "teacher-answers"}.get(made, "seq2seq")
        model_id, uri = tracked.log_model_output(name, files, facts, upload=student, form=form)
        if student:
            registered = f"{self.workspace.config.name}-{name}"
            uri = f"models:/{registered}/{tracked.register(model_id, registered, facts)}"
        return replace(found, model_id=model_id, model_uri=uri)

    def _send_report(self, stage: Stage, found: FinishedStage, tracked: TrackedRun) -> None:
        inputs = {role: self.workspace.finished(upstream) for role, upstream in stage.inputs.items()}
        report = json.loads(found.read("report.json").read_text())
        log_comparison(tracked, report, stage, inputs)
        if "examples.json" in found.digests:
            tracked.log_table("examples.json", json.loads(found.read("examples.json").read_text()))
        config = self.workspace.config
        differing: dict[str, Collection[object]] = {
            "variant": config.variants,
            "ratio": config.teacher.ratios,
            "seed": config.seeds,
        }
        coordinates = [name for name, values in differing.items() if len(values) > 1]
        try:
            metrics = config.task.metrics if config.task else []
            publish_view(self.store, config.name, stage.fingerprint[:12], coordinates, metrics)
        except Exception as error:  # the view uses the UI's internal format, which a server may refuse
            self.workspace.say(f"Could not save the comparison as a view of the MLflow UI: {cause_of(error)}")

    def _tags(self, stage: Stage) -> dict[str, str]:
        config, data = self.workspace.config, self.workspace.data
        tags = {
            "pipeline": config.name,
            "stage": stage.kind,
            "fingerprint": stage.fingerprint,
            "data.digest": data.digest,
            **{f"data.{name}": commit for name in _REVISIONS if (commit := getattr(data, name))},
            "mlflow.source.name": f"switch-distill {stage.command} {config.name}",
            **self.machine(),
        }
        if stage.ratio:
            number = list(config.teacher.ratios).index(stage.ratio)
            tags |= {"ratio": stage.ratio, "mlflow.runColor": COLOURS[number % len(COLOURS)]}
        return tags | {
            key: str(value) for key, value in vars(stage).items() if key in ("seed", "variant") and value is not None
        }
