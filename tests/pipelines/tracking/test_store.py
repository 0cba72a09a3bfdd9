"""Errors of MLflow and of the libraries below it become expected errors where MLflow is called."""

import errno
import gc
import json
import re
import shutil
import sqlite3
from collections.abc import Callable
from types import SimpleNamespace

import mlflow
import pytest
import requests
from mlflow.exceptions import MlflowException, RestException

from distill.errors import DiskFull, UserError
from distill.io.disk import is_full
from pipelines.runner.publish import Publisher
from pipelines.tracking import store_uri
from pipelines.tracking.store import Client, Store, _make_sqlite
from pipelines.tracking.store_uri import StoreError
from pipelines.tracking.tracked_run import TrackedRun, describe_run


@pytest.fixture
def store(database, tmp_path, monkeypatch) -> Store:
    """A new store in an empty work directory."""
    monkeypatch.setattr(store_uri, "ASKED_FOR", None)
    (tmp_path / "work").mkdir()
    shutil.copy(database, tmp_path / "work")
    return Store(tmp_path / "work", "x")


@pytest.fixture
def client(monkeypatch) -> Client:
    """A client of a store that is never called."""
    monkeypatch.setattr(store_uri, "ASKED_FOR", None)
    return Client("http://127.0.0.1:9")


@pytest.fixture
def fails(monkeypatch) -> Callable[[str, Exception], None]:
    """Let a method of MLflow's client raise an error."""

    def let_fail(method: str, error: Exception) -> None:
        def fail(*_, **__):
            raise error

        monkeypatch.setattr(mlflow.MlflowClient, method, fail)

    return let_fail


@pytest.mark.parametrize(
    "error,code",
    [
        (MlflowException("no"), "INTERNAL_ERROR"),
        (RestException({"error_code": "PERMISSION_DENIED", "message": "no"}), "PERMISSION_DENIED"),
        (requests.ConnectionError("no"), None),
        (requests.HTTPError("no"), None),
        (PermissionError(errno.EACCES, "no"), None),
        (sqlite3.OperationalError("no"), None),
        (ModuleNotFoundError("no driver"), None),
        (json.JSONDecodeError("no", "<html>", 0), None),
        (type("ClientError", (Exception,), {})("no bucket"), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_a_failure_of_the_store_is_a_store_error(error, code, client, fails):
    fails("search_experiments", error)
    with pytest.raises(StoreError, match=r"^MLflow \(the work directory's own store\) failed: .*no") as caught:
        client.search_experiments(max_results=1)
    assert caught.value.__cause__ is error and caught.value.code == code and "no" in caught.value.cause


@pytest.mark.parametrize(
    "error", [TypeError("wrong argument"), KeyError("a"), UserError("said already"), DiskFull("said already")]
)
def test_bugs_and_expected_errors_keep_their_type(error, client, fails):
    fails("search_experiments", error)
    with pytest.raises(type(error)) as caught:
        client.search_experiments()
    assert caught.value is error


def test_a_store_error_is_one_line_without_credentials_and_knows_a_full_disk(client, fails, monkeypatch):
    monkeypatch.setattr(store_uri, "ASKED_FOR", "https://me:secret@host")
    causes = [
        MlflowException("at https://me:secret@host/api\n[SQL: SELECT 1]"),
        OSError(errno.ENOSPC, "full"),
        OSError(),
    ]
    found = []
    for cause in causes:
        fails("get_run", cause)
        with pytest.raises(StoreError) as caught:
            client.get_run("1")
        assert str(caught.value).startswith("MLflow (https://host) failed: ") and "\n" not in str(caught.value)
        found.append((caught.value.cause, is_full(caught.value)))
    assert found == [("at https://host/api", False), ("the disk is full", True), ("OSError", False)]


def test_only_failures_of_the_store_are_suppressed(store):
    said = []
    publisher = Publisher(SimpleNamespace(say=said.append), None)
    with publisher.unless_unreachable():
        store.client.get_run("nonsense")
    assert "nonsense" in publisher.unreachable and len(said) == 1 and publisher.unreachable in said[0]
    full = StoreError("the disk is full")
    full.__cause__ = OSError(errno.ENOSPC, "full")
    for error in (FileNotFoundError("our own file"), full):
        with pytest.raises(type(error)) as caught, publisher.unless_unreachable():
            raise error
        assert caught.value is error


def test_an_experiment_that_another_process_has_just_made_is_used(store, monkeypatch):
    real, missing = mlflow.MlflowClient.get_experiment_by_name, [True]

    def get(client, name):
        return None if missing and missing.pop() else real(client, name)

    monkeypatch.setattr(mlflow.MlflowClient, "get_experiment_by_name", get)
    assert Store(store.workdir, "x").experiment == store.experiment and not missing


def test_a_store_that_cannot_create_an_experiment_is_named(store, fails):
    fails("create_experiment", RestException({"error_code": "PERMISSION_DENIED", "message": "not you"}))
    with pytest.raises(UserError, match=r"cannot be used: PERMISSION_DENIED: not you; .* check MLFLOW_TRACKING_URI"):
        Store(store.workdir, "another")


def test_a_registered_name_is_used_again_and_a_refused_one_is_an_error(store, tmp_path, fails):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"1")
    describe_run(tmp_path, {"stage": "distill"})
    tracked = TrackedRun(store, tmp_path, "distill e2")
    model_id, _ = tracked.log_model_output("student", tmp_path / "model", {}, upload=True)
    assert [str(tracked.register(model_id, "smoke-student", {})) for _ in range(2)] == ["1", "1"]

    fails("create_registered_model", RestException({"error_code": "PERMISSION_DENIED", "message": "not you"}))
    with pytest.raises(StoreError, match="PERMISSION_DENIED: not you"):
        tracked.register(model_id, "smoke-student", {})


def test_a_new_store_has_the_tables_that_mlflow_makes_in_a_file(database, tmp_path):
    """MLflow writes the columns, conditions and indices of a table in the order of a set."""

    def schema(path):
        with sqlite3.connect(path) as tables:
            made = tables.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
            rows = {
                name: tables.execute(f'SELECT count(*) FROM "{name}"').fetchone()
                for kind, name, _ in made
                if kind == "table"
            }
            settings = [
                tables.execute(f"PRAGMA {name}").fetchone() for name in ("page_size", "auto_vacuum", "encoding")
            ]
            # Each process has one new store, with the directory in which it was made in the location.
            columns = "experiment_id, name, artifact_location LIKE '%/mlruns/0'"
            experiment = tables.execute(f"SELECT {columns} FROM experiments").fetchall()
            version = tables.execute("SELECT * FROM alembic_version").fetchall()
        parts = {(kind, name): sorted(re.split(r",\s+", (sql or "").strip("\n)"))) for kind, name, sql in made}
        return parts, rows, settings, experiment, version

    mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").search_experiments(max_results=1)
    ours, theirs = schema(database), schema(tmp_path / "mlflow.db")
    assert len(ours[0]) > 100 and ours == theirs
    with sqlite3.connect(database) as tables:
        assert tables.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_killed_process_leaves_no_half_of_a_store(tmp_path):
    (tmp_path / ".mlflow.db.123").write_bytes(b"half")
    _make_sqlite(tmp_path / "mlflow.db")
    assert {path.name for path in tmp_path.iterdir()} - {".mlflow.lock"} == {"mlflow.db"}


def test_garbage_collections_do_not_visit_the_modules_of_an_open_store(store):
    workspace = SimpleNamespace(directory=store.workdir, config=SimpleNamespace(name="x"))
    gc.unfreeze()
    assert Publisher(workspace, None).store.experiment == store.experiment
    frozen = gc.get_freeze_count()
    gc.unfreeze()
    assert frozen > 100_000
