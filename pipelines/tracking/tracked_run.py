"""One MLflow run per stage: params, data sets, curves, models, final metrics.

Runs are not nested, because the charts of the UI hide nested runs. All calls go through MlflowClient with explicit ids
and never use MLflow's active run.
"""

import json
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from distill.io.files import directory_digest, directory_uri, read_record, write_record
from pipelines.tracking.environment import environment_tags
from pipelines.tracking.metric_log import send_new_metrics
from pipelines.tracking.store import Store
from pipelines.tracking.store_uri import StoreError, cause_of
from pipelines.workdir.teacher_files import Reference

if TYPE_CHECKING:
    from mlflow.entities import Run

_TOKEN = "stage_token"  # tag that identifies the run of a directory before run.json contains its id
_HINT = "delete it, and the stage gets a new MLflow run"
# A colour per ratio, from the smallest ratio on. The UI and the plot use the same colours.
COLOURS = ("#1b6ca8", "#2a9d8f", "#e9a23b", "#c8553d", "#7b5ea7", "#5b8e3e", "#b0457b", "#4f6d7a")


def describe_run(directory: Path, tags: dict[str, str]) -> None:
    """Write run.json: the tags of the stage's MLflow run, with the environment that computes the stage.

    If a continued stage gives a tag another value, the tag keeps both, for example ``2, then 1``.

    Raises:
        UserError: an existing run.json is damaged.
    """
    path = directory / "run.json"
    new = {"run_id": "", "tags": {_TOKEN: uuid4().hex}}
    record: dict[str, Any] = read_record(path, _HINT) if path.exists() else new
    known = record["tags"]
    for key, value in {**tags, **environment_tags()}.items():
        before = known[key].split(", then ") if key in known else []
        known[key] = ", then ".join(before if value in before else [*before, value])
    write_record(path, record)


class TrackedRun:
    """The MLflow run of one stage. An interrupted stage continues its run.

    The methods raise StoreError if the store fails.
    """

    def __init__(self, store: Store, directory: Path, name: str):
        """Start or continue the run that ``describe_run`` has described in ``directory``.

        Raises:
            UserError: run.json is missing or damaged.
            StoreError: the store fails.
        """
        self.store, self.client, self.directory = store, store.client, directory
        record = read_record(directory / "run.json", _HINT)
        tags = record["tags"]
        self.run_id = record["run_id"] or self._started(tags[_TOKEN])
        self._earlier: Run | None = None  # what an interrupted process has logged; only this process adds to it
        if self.run_id:
            self.client.update_run(self.run_id, status="RUNNING")
            self._earlier = self.client.get_run(self.run_id)
            known = self._earlier.data.tags
            self.set_tags({key: value for key, value in tags.items() if known.get(key) != value})
        else:
            self.run_id = self.client.create_run(store.experiment, run_name=name, tags=tags).info.run_id
        if self.run_id != record["run_id"]:
            write_record(directory / "run.json", {**record, "run_id": self.run_id})

    def _started(self, token: str) -> str:
        """The id of a run that was started for this directory by a process that was killed before it wrote the id."""
        for run in self.client.search_runs([self.store.experiment], f"tags.{_TOKEN} = '{token}'", max_results=1):
            return run.info.run_id
        return ""

    def log_params(self, params: dict[str, Any]) -> None:
        """Log params. Nested keys are joined with dots. MLflow cuts values that are too long.

        MLflow refuses another value of a param. So a param that an interrupted process has logged keeps its value: a
        variant may have got another name since.
        """
        from mlflow.entities import Param

        known = self._earlier.data.params if self._earlier else {}
        new = [Param(key, str(value)) for key, value in _flatten(params) if key not in known]
        if new:
            self.client.log_batch(self.run_id, params=new)

    def log_data(self, name: str, digest: str, context: str, source: tuple[str, str], profile: dict[str, Any]) -> None:
        """Log a data set as an input of the run.

        Args:
            digest: of all bytes. MLflow's own digest covers only the first 10,000 rows.
            context: train, validation or test.
            source: of ``pipelines.tracking.data_source.mlflow_source``.
            profile: facts of the data set, as values that JSON can hold.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(name, digest, *source, profile=json.dumps(profile))
        tags = [InputTag("mlflow.data.context", context)]
        self.client.log_inputs(self.run_id, datasets=[DatasetInput(dataset, tags)])

    def log_model_inputs(self, models: dict[str, str]) -> None:
        """Log models, role -> model id, as inputs of the run, and as tags because MLflow cannot search model inputs.

        Raises:
            RuntimeError: a model is not ready.
        """
        from mlflow.entities import LoggedModelInput

        for role, model_id in models.items():
            model = self.client.get_logged_model(model_id)  # log_inputs would accept an id that does not exist
            if model.status != "READY":
                raise RuntimeError(f"{role} model {model_id} is {model.status}")
        self.set_tags({f"input.{role}"[:250]: model_id for role, model_id in models.items()})
        earlier = self._earlier.inputs if self._earlier else None
        known = {model.model_id for model in earlier.model_inputs} if earlier else set()
        new = [LoggedModelInput(model_id) for model_id in models.values() if model_id not in known]
        if new:
            self.client.log_inputs(self.run_id, models=new)

    def log_model_output(
        self, name: str, files: Path | Reference, params: dict[str, Any], *, upload: bool, form: str = "seq2seq"
    ) -> tuple[str, str]:
        """Log a directory, or a reference to files elsewhere, as a model that this run made.

        Args:
            files: the directory or the reference.
            params: params of the model.
            upload: also upload the files of the directory to the store. A reference is never uploaded.
            form: MLflow's type of the model.

        Returns:
            The model's id and URI. The URI is ``models:/<id>`` if the files are uploaded, else that of ``files``.
        """
        from mlflow.entities import LoggedModelOutput

        place, digest = (files, directory_digest(files)) if isinstance(files, Path) else (files.source, files.digest)
        tags = {"directory": str(place), "sha256": digest}
        outputs = self.client.get_run(self.run_id).outputs.model_outputs
        made = [self.client.get_logged_model(output.model_id) for output in outputs]
        # Continue an interrupted upload: the run has the model as an output before the model is ready.
        model = next((model for model in made if model.tags.get("sha256") == tags["sha256"]), None)
        if model is None:
            model = self.client.create_logged_model(
                self.store.experiment,
                name=name,
                source_run_id=self.run_id,
                tags=tags,
                params={key: str(value) for key, value in params.items()},
                model_type=form,
            )
            self.client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, step=0)])
        if model.status != "READY":
            if upload:
                self.client.log_model_artifacts(model.model_id, str(place))
            self.client.finalize_logged_model(model.model_id, "READY")
        return model.model_id, _uri(model.model_id, files, upload)

    def register(self, model_id: str, name: str, tags: dict[str, Any]) -> str:
        """Register an uploaded model, and return its version.

        Args:
            tags: of the version. The model id is added to them, because versions do not store it.
        """
        try:
            self.client.create_registered_model(name)
        except StoreError as error:
            if error.code != "RESOURCE_ALREADY_EXISTS":
                raise
        for version in self.client.search_model_versions(f"name = '{name}'"):
            if version.tags.get("model_id") == model_id:
                return version.version
        text = {key: str(value) for key, value in {**tags, "model_id": model_id}.items()}
        source = f"models:/{model_id}"
        return self.client.create_model_version(name, source, run_id=self.run_id, tags=text, model_id=model_id).version

    def send(self, points: list[Any]) -> None:
        """Log points of curves, a list of MLflow's Metric entities."""
        self.client.log_batch(self.run_id, metrics=points)

    def log_results(self, metrics: dict[str, float], *, run_id: str | None = None, model_id: str | None = None) -> None:
        """Log final metrics at step 0, so that the UI draws bars. Values are rounded to six decimals.

        Metrics that the run already has with the same value are skipped. A tag with the name of a metric is removed: an
        earlier report said there that it is undefined.

        Args:
            run_id: another run to log to; None: this run.
            model_id: a model that the metrics describe too.
        """
        from mlflow.entities import Metric

        now, run = int(time.time() * 1000), self.client.get_run(run_id) if run_id else self._earlier
        there = run.data.metrics if run else {}
        known = {key: round(value, 6) for key, value in metrics.items() if math.isfinite(value)}
        rows = [Metric(k, value, now, 0, model_id=model_id) for k, value in known.items() if there.get(k) != value]
        if rows:
            self.client.log_batch(run_id or self.run_id, metrics=rows)
        for key in known.keys() & (run.data.tags.keys() if run else ()):
            self.client.delete_tag(run_id or self.run_id, key)

    def set_tags(self, tags: dict[str, Any], run_id: str | None = None) -> None:
        """Set tags on the run ``run_id``; None: this run."""
        from mlflow.entities import RunTag

        if tags:
            self.client.log_batch(run_id or self.run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])

    def log_file(self, path: Path) -> None:
        """Upload a file as an artifact of the run."""
        self.client.log_artifact(self.run_id, str(path))

    def log_table(self, name: str, columns: dict[str, list[str]]) -> None:
        """Log columns of equal length as a table, which the UI shows, in the artifact ``name``, a file of JSON.

        A table that the run already has stays as it is, because MLflow would append the rows to it.
        """
        if name not in (one.path for one in self.client.list_artifacts(self.run_id)):
            self.client.log_table(self.run_id, columns, name)

    def close(self, status: str) -> None:
        """Send the rest of the curves and end the run with ``status`` FINISHED, FAILED or KILLED.

        Raises:
            StoreError: the store fails and ``status`` is FINISHED. For the other statuses the failure is only logged,
                because another exception is being raised, and it must not be hidden.
        """
        try:
            send_new_metrics(self.directory / "metrics.jsonl", self.send)
            self.client.set_terminated(self.run_id, status)
        except Exception as error:
            if status == "FINISHED":
                raise
            logging.getLogger(__name__).warning(
                "the MLflow run %s could not be ended: %s", self.run_id, cause_of(error)
            )


def _uri(model_id: str, files: Path | Reference, uploaded: bool) -> str:
    if uploaded:
        return f"models:/{model_id}"
    return directory_uri(files) if isinstance(files, Path) else files.uri


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
