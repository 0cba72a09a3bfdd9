"""MLflow: the store, one run per stage, curves, models, data sets. Training writes to a local file; a thread delivers.

Runs are flat: nested ones are hidden from the charts of the UI. Everything goes through MlflowClient with explicit
ids, never through MLflow's idea of an active run.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from distill.errors import UserError
from distill.files import make_directory, read_record, write_json, write_text
from pipelines import store_uri
from pipelines.feed import MetricFeed, cause_of
from pipelines.store_uri import check_store, redacted, without_credentials

# A tracking server that is gone must not hold up training: few and short attempts, the rest is kept on disk.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

_LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy", "mlflow")
# One per ratio, from the smallest on; the same in the UI and in the plot.
COLOURS = ("#1b6ca8", "#2a9d8f", "#e9a23b", "#c8553d", "#7b5ea7", "#5b8e3e", "#b0457b", "#4f6d7a")


class Store:
    """The tracking store of a work directory: SQLite and files in it, or the server that MLFLOW_TRACKING_URI names."""

    def __init__(self, workdir: Path, experiment: str | None):
        """Open the store; make the experiment if it is named and missing. Without one, nothing is written.

        Raises:
            UserError: the store cannot be reached, or the work directory's stages are tracked in another one.
        """
        self.workdir = workdir.resolve()
        local = f"sqlite:///{self.workdir / 'mlflow.db'}"
        self.uri = store_uri.ASKED_FOR or local
        check_store(self.workdir)
        import mlflow  # slow to import; a finished pipeline is answered without it

        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it prints the SQL of what it raises
        if experiment:
            make_directory(self.workdir)
        try:
            if self.uri == local:
                self._make_sqlite()
            mlflow.set_tracking_uri(self.uri)
            self.client = mlflow.MlflowClient()
            self.experiment = None
            if experiment:
                with FileLock(self.workdir / ".mlflow.lock"):  # two processes that both find none make two
                    self.experiment = self._experiment(experiment)
        except mlflow.exceptions.MlflowException as error:
            cause = without_credentials(str(error)).split("\n")[0][:200]
            raise UserError(
                f"the MLflow store {redacted(self.uri)} cannot be used: {cause}; check MLFLOW_TRACKING_URI"
            ) from error
        if experiment:
            write_json(self.workdir / "tracking.json", {"store": store_uri.label()})

    def _make_sqlite(self) -> None:
        """Build a new store's tables beside and rename: half of them, or two processes at it, break it for good."""
        import mlflow

        database, beside = self.workdir / "mlflow.db", self.workdir / ".mlflow.db.new"
        with FileLock(self.workdir / ".mlflow.lock"):
            if database.exists():
                return
            for left in self.workdir.glob(f"{beside.name}*"):  # by a killed process, its journal too
                left.unlink()
            mlflow.MlflowClient(f"sqlite:///{beside}").search_experiments(max_results=1)
            beside.replace(database)

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            sqlite = self.uri.startswith("sqlite")
            location = (self.workdir / "mlartifacts").as_uri() if sqlite else None
            return self.client.create_experiment(name, artifact_location=location)
        if found.lifecycle_stage == "deleted":
            raise UserError(
                f"the MLflow experiment {name!r} was deleted; restore it, or set another name in the config"
            )
        return found.experiment_id

    def model_files(self, model_id: str) -> Path:
        """A local directory with the files of a model, checked against the digest that was logged with them.

        Raises:
            UserError: they are not in the store and not where they were made, or they have changed since.
        """
        import mlflow

        model = self.client.get_logged_model(model_id)
        directory = Path(model.tags["directory"])
        if self.client.list_logged_model_artifacts(model_id):
            directory = Path(mlflow.artifacts.download_artifacts(f"models:/{model_id}"))
        if not directory.is_dir():
            raise UserError(
                f"the files of model {model_id} are not in the store, and {directory} is gone; make it again"
            )
        if directory_digest(directory) != model.tags["sha256"]:
            raise UserError(
                f"the files of model {model_id} in {directory} have changed since it was made; make it again"
            )
        return directory


def existing_store(workdir: Path) -> Store:
    """The store of a work directory in which stages have run, or the server that MLFLOW_TRACKING_URI names.

    Raises:
        UserError: there is none.
    """
    if not store_uri.ASKED_FOR and not (workdir / "tracking.json").exists():
        raise UserError(f"{workdir} holds no MLflow store; run a stage first, or name another --workdir")
    return Store(workdir, None)


class TrackedRun:
    """One MLflow run, for one stage; continued if the stage was interrupted."""

    def __init__(self, store: Store, directory: Path, name: str, tags: dict[str, str]):
        self.store, self.client, self.directory = store, store.client, directory
        record, everything = directory / "run.json", {**tags, **_environment()}
        if record.exists():
            self.run_id = read_record(record, "delete it, and the stage gets a new MLflow run")["run_id"]
            self.client.update_run(self.run_id, status="RUNNING")
            from distill.machine import continued  # with torch, which is there where a stage is computed

            self.set_tags(continued(self.client.get_run(self.run_id).data.tags, everything))
        else:
            self.run_id = self.client.create_run(store.experiment, run_name=name, tags=everything).info.run_id
            write_json(record, {"run_id": self.run_id})
        self._feed = MetricFeed(self.client, self.run_id, directory / "metrics.jsonl")

    def log_params(self, params: dict[str, Any]) -> None:
        from mlflow.entities import Param

        flat = [Param(key, str(value)[:500]) for key, value in _flatten(params)]
        self.client.log_batch(self.run_id, params=flat)

    def log_data(self, name: str, digest: str, context: str, profile: dict[str, Any]) -> None:
        """A data set as input. MLflow's own digest reads only the first 10,000 rows; ours is of all bytes."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(name, digest, "local", json.dumps({"corpus": name}), profile=json.dumps(profile))
        tags = [InputTag("mlflow.data.context", context)]
        self.client.log_inputs(self.run_id, datasets=[DatasetInput(dataset, tags)])

    def log_model_inputs(self, models: dict[str, str]) -> None:
        """Role -> model id. Also as tags, because runs cannot be searched by their model inputs."""
        from mlflow.entities import LoggedModelInput

        for role, model_id in models.items():
            model = self.client.get_logged_model(model_id)  # MLflow itself accepts ids that do not exist
            if model.status != "READY":
                raise RuntimeError(f"{role} model {model_id} is {model.status}")
            self.client.set_tag(self.run_id, f"input.{role}"[:250], model_id)
        known = {model.model_id for model in self.client.get_run(self.run_id).inputs.model_inputs}
        new = [LoggedModelInput(model_id) for model_id in models.values() if model_id not in known]
        if new:
            self.client.log_inputs(self.run_id, models=new)

    def log_model_output(
        self, name: str, directory: Path, params: dict[str, Any], *, upload: bool, form: str = "seq2seq"
    ) -> tuple[str, str]:
        """Record ``directory`` as a model that this run made; with ``upload``, its files go to the store too.

        Returns:
            The model's id, and a URI: ``models:/<id>`` where the files are in the store, else the directory's.
        """
        from mlflow.entities import LoggedModelOutput

        tags = {"directory": str(directory), "sha256": directory_digest(directory)}
        for output in self.client.get_run(self.run_id).outputs.model_outputs:
            before = self.client.get_logged_model(output.model_id)
            if before.status == "READY" and before.tags.get("sha256") == tags["sha256"]:
                return before.model_id, _uri(before.model_id, directory, upload)  # interrupted after this point
        model = self.client.create_logged_model(
            self.store.experiment,
            name=name,
            source_run_id=self.run_id,
            tags=tags,
            params={key: str(value) for key, value in params.items()},
            model_type=form,
        )
        if upload:
            self.client.log_model_artifacts(model.model_id, str(directory))
        self.client.finalize_logged_model(model.model_id, "READY")
        self.client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, step=0)])
        return model.model_id, _uri(model.model_id, directory, upload)

    def register(self, model_id: str, name: str, tags: dict[str, Any]) -> str:
        """Register an uploaded model; returns its version. The id is a tag too: versions do not keep it."""
        from mlflow.exceptions import MlflowException

        with contextlib.suppress(MlflowException):  # it exists already
            self.client.create_registered_model(name)
        for version in self.client.search_model_versions(f"name = '{name}'"):
            if version.tags.get("model_id") == model_id:
                return version.version
        text = {key: str(value) for key, value in {**tags, "model_id": model_id}.items()}
        source = f"models:/{model_id}"
        return self.client.create_model_version(name, source, run_id=self.run_id, tags=text, model_id=model_id).version

    def log_curve(self, step: int, metrics: dict[str, float]) -> None:
        """A point of a curve: one line in a local file, delivered later. A step seen before is not repeated."""
        self._feed.log(step, metrics)

    def log_results(self, metrics: dict[str, float], *, run_id: str | None = None, model_id: str | None = None) -> None:
        """Final figures, at step 0 so that the UI draws bars, on this run or another, and on its model."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        known = {key: round(value, 6) for key, value in metrics.items() if math.isfinite(value)}
        rows = [Metric(key, value, now, 0, model_id=model_id) for key, value in known.items()]
        self.client.log_batch(run_id or self.run_id, metrics=rows)

    def set_tags(self, tags: dict[str, Any], run_id: str | None = None) -> None:
        for key, value in tags.items():
            self.client.set_tag(run_id or self.run_id, key, value)

    def log_file(self, path: Path) -> None:
        self.client.log_artifact(self.run_id, str(path))

    def log_text(self, name: str, text: str) -> None:
        write_text(self.directory / name, text)
        self.log_file(self.directory / name)

    def close(self, status: str) -> None:
        """Deliver what is left of the curves and end the run as FINISHED, FAILED or KILLED.

        Only a finished run insists: while another error is on its way, a store that is away must not hide it.
        """
        try:
            self._feed.close()
            self.client.set_terminated(self.run_id, status)
        except Exception as error:
            if status == "FINISHED":
                raise
            logging.getLogger(__name__).warning(
                "the MLflow run %s could not be ended: %s", self.run_id, cause_of(error)
            )


def _uri(model_id: str, directory: Path, uploaded: bool) -> str:
    return f"models:/{model_id}" if uploaded else directory.absolute().as_uri()


def directory_digest(directory: Path) -> str:
    """SHA-256 over names and bytes of the files of a model directory, cut to 32 hexadecimal digits."""
    total = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        with open(path, "rb") as file:
            total.update(path.relative_to(directory).as_posix().encode() + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:32]


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _environment() -> dict[str, str]:
    """Versions, host and git commit: what a result depends on besides its config."""
    from importlib.metadata import version

    tags = {"version.python": platform.python_version(), "host": platform.node()}
    tags |= {f"version.{name}": version(name) for name in _LIBRARIES}
    git = ["git", "-C", str(Path(__file__).parent)]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
        tags |= {"mlflow.source.git.commit": commit, "git.clean": str(not dirty.strip()).lower()}
    return tags
