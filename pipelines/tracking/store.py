"""The MLflow store: create it, open it, and get the files of a model from it."""

import contextlib
import importlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from distill.errors import ExpectedError, UserError
from distill.io.files import directory_digest, make_directory, write_bytes, write_json
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

# An unreachable tracking server must not delay training, so retries are few and short. Unsent data is kept on disk.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")


@contextlib.contextmanager
def store_errors() -> Iterator[None]:
    """Convert failures of the store in the block to StoreError. A wrong call of MLflow keeps its own exception.

    A store fails with exceptions of MLflow and of the libraries below it: requests, SQLAlchemy and its drivers, clients
    of object stores. Therefore every exception counts as a failure of the store, except Python's built-in ones. Of
    those, OSError (the operating system failed) and ImportError (a driver is not installed) count as well.

    Raises:
        StoreError: in place of the exception that the store or its client raised.
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
    """An MlflowClient whose methods raise StoreError if the store fails."""

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
    """The tracking store of a work directory: SQLite and files in it, or the store that MLFLOW_TRACKING_URI names.

    The methods, and those of ``client``, raise StoreError if the store fails.
    """

    def __init__(self, workdir: Path, experiment: str | None):
        """Open the store, and create the experiment if it does not exist.

        Args:
            experiment: the name of the experiment; None: use no experiment and write nothing to the work directory.

        Raises:
            UserError: the store cannot be used, or the stages of the work directory are tracked in another store.
        """
        self.workdir = workdir.resolve()
        self.uri = store_uri.ASKED_FOR or sqlite_uri(self.workdir / "mlflow.db")
        check_store(self.workdir)
        import mlflow  # slow to import; a command that only reuses stages does not need it

        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it prints the SQL of errors
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
                f"the MLflow store {redacted(self.uri)} cannot be used: {error.cause}; check that it is running, and "
                "check MLFLOW_TRACKING_URI"
            ) from error
        if experiment:
            write_json(self.workdir / "tracking.json", {"store": store_uri.label()})

    def wait(self, seconds: float) -> None:
        """Wait until the store answers, at most ``seconds``."""
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
                if error.code != "RESOURCE_ALREADY_EXISTS":  # another process may have created it
                    raise
                found = self.client.get_experiment_by_name(name)
        if found.lifecycle_stage == "deleted":
            raise UserError(
                f"the MLflow experiment {name!r} was deleted; restore it, or set another name in the config"
            )
        return found.experiment_id

    def model_files(self, model_id: str) -> Path:
        """A local directory with the files of a model, after a check of the digest that was logged with them.

        Raises:
            UserError: the files are neither in the store nor in the directory where they were made, or they have
                changed.
        """
        import mlflow

        model = self.client.get_logged_model(model_id)
        directory = Path(model.tags["directory"])
        if self.client.list_logged_model_artifacts(model_id):
            with store_errors():
                directory = Path(mlflow.artifacts.download_artifacts(f"models:/{model_id}"))
        if not directory.is_dir():
            raise UserError(
                f"the files of model {model_id} are not in the store, and {directory} does not exist; recompute the "
                "model"
            )
        if directory_digest(directory) != model.tags["sha256"]:
            raise UserError(
                f"the files of model {model_id} in {directory} have changed since it was made; recompute the model"
            )
        return directory


def existing_store(workdir: Path) -> Store:
    """The store of a work directory in which stages have run, or the store that MLFLOW_TRACKING_URI names.

    Raises:
        UserError: the work directory has no store, or the store cannot be used.
    """
    check_store(workdir)
    if not store_uri.ASKED_FOR and not (workdir / "tracking.json").exists():
        raise UserError(f"{workdir} holds no MLflow store; run a stage first, or choose another --workdir")
    return Store(workdir, None)


def load_store(workdir: Path) -> None:
    """Import MLflow, and make the tables of a new store in memory, so that a later ``Store`` opens at once."""
    importlib.import_module("mlflow")
    if database := sqlite_file(store_uri.ASKED_FOR or sqlite_uri(workdir / "mlflow.db")):
        importlib.import_module("mlflow.store.tracking.sqlalchemy_store")
        if not database.exists():
            _new_database()


def _make_sqlite(database: Path) -> None:
    """Write a new store to a file, if there is no such file.

    A database with half of the tables, or one that two processes create at once, stays unusable.
    """
    if database.exists():
        with store_errors():  # fails at once; MLflow would retry for two minutes
            sqlite3.connect(database).close()
        return
    make_directory(database.parent)
    with FileLock(database.with_name(".mlflow.lock")), store_errors():
        if database.exists():
            return
        for left in database.parent.glob(f".{database.name}.[0-9]*"):  # of a killed process
            left.unlink()
        write_bytes(database, _new_database())


@cache
def _new_database() -> bytes:
    """An SQLite file with the tables of a new store, made by MLflow's migrations.

    They run in memory. On a disk, hundreds of them wait for it one after the other.
    """
    name = "file:new-store?mode=memory&cache=shared"  # exists as long as a connection to it
    with contextlib.closing(sqlite3.connect(name, uri=True)) as memory:
        Client(f"sqlite+pysqlite:///{name}&uri=true").search_experiments(max_results=1)
        return memory.serialize()
