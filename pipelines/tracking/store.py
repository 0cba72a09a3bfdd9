"""The MLflow store: opened, made where there is none, and asked for the files of a model."""

import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from distill.errors import ExpectedError, UserError
from distill.io.files import directory_digest, make_directory, write_json
from pipelines.tracking import store_uri
from pipelines.tracking.store_uri import (
    StoreError,
    artifact_location,
    cause_of,
    check_store,
    redacted,
    sqlite_file,
    sqlite_uri,
)

# A tracking server that is gone must not hold up training: few and short attempts, the rest is kept on disk.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")


@contextlib.contextmanager
def store_errors() -> Iterator[None]:
    """Where MLflow is called: what goes wrong with the store is an expected error, a wrong call of ours is not.

    A store reports through MLflow's exceptions, and also through those of the libraries that it talks with: requests,
    SQLAlchemy and its drivers, object stores. So what is no class of Python's own counts as the store's, and of those
    what the operating system reports, and that a driver is not installed.

    Raises:
        StoreError: in place of what the store or its client raised.
    """
    try:
        yield
    except ExpectedError:
        raise
    except Exception as error:
        if type(error).__module__ == "builtins" and not isinstance(error, (OSError, ImportError)):
            raise
        raise StoreError(cause_of(error), getattr(error, "error_code", None)) from error


class Client:
    """MlflowClient's methods; each raises StoreError where the store does not do what it is asked for."""

    def __init__(self, uri: str):
        import mlflow

        with store_errors():
            self._client = mlflow.MlflowClient(uri)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        def call(*values: Any, **named: Any) -> Any:
            with store_errors():
                return method(*values, **named)

        return call


class Store:
    """The tracking store of a work directory: SQLite and files in it, or the server that MLFLOW_TRACKING_URI names.

    Its ``client`` and its methods raise StoreError where the store does not do what it is asked for.
    """

    def __init__(self, workdir: Path, experiment: str | None):
        """Open the store; make the experiment if it is named and missing. Without one, nothing is written.

        Raises:
            UserError: the store cannot be reached, or the work directory's stages are tracked in another one.
        """
        self.workdir = workdir.resolve()
        self.uri = store_uri.ASKED_FOR or sqlite_uri(self.workdir / "mlflow.db")
        check_store(self.workdir)
        import mlflow  # slow to import; a finished pipeline is answered without it

        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it prints the SQL of what it raises
        if experiment:
            make_directory(self.workdir)
        try:
            if database := sqlite_file(self.uri):
                _make_sqlite(database)
            mlflow.set_tracking_uri(self.uri)
            self.client = Client(self.uri)
            self.experiment = None
            if experiment:
                self.experiment = os.environ.get(store_uri.EXPERIMENT) or self._experiment(experiment)
        except StoreError as error:
            raise UserError(
                f"the MLflow store {redacted(self.uri)} cannot be used: {error.cause}; see that it runs, and check "
                "MLFLOW_TRACKING_URI"
            ) from error
        if experiment:
            write_json(self.workdir / "tracking.json", {"store": store_uri.label()})

    def wait(self, seconds: float) -> None:
        """Until the store answers, or for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                self.client.search_experiments(max_results=1)
                return
            except StoreError:
                time.sleep(1)

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            sqlite = self.uri.startswith("sqlite")
            location = artifact_location(self.workdir) if sqlite else None
            try:
                return self.client.create_experiment(name, artifact_location=location)
            except StoreError as error:
                if error.code != "RESOURCE_ALREADY_EXISTS":  # else another process has just made it
                    raise
                found = self.client.get_experiment_by_name(name)
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
            with store_errors():
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
    check_store(workdir)
    if not store_uri.ASKED_FOR and not (workdir / "tracking.json").exists():
        raise UserError(f"{workdir} holds no MLflow store; run a stage first, or name another --workdir")
    return Store(workdir, None)


def _make_sqlite(database: Path) -> None:
    """Build a new store's tables beside and rename: half of them, or two processes at it, break it for good."""
    if database.exists():
        with store_errors():  # at once: MLflow would try for two minutes
            sqlite3.connect(database).close()
        return
    make_directory(database.parent)
    tmp_file = database.absolute().with_name(f".{database.name}.new")
    with FileLock(database.with_name(".mlflow.lock")):
        if database.exists():
            return
        for left in tmp_file.parent.glob(f"{tmp_file.name}*"):  # by a killed process, its journal too
            left.unlink()
        Client(sqlite_uri(tmp_file)).search_experiments(max_results=1)
        tmp_file.replace(database)
