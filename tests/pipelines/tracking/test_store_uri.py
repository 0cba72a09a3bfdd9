"""Work directories of any name: characters of the URI syntax are quoted for MLflow and SQLAlchemy."""

import os
import shutil
import sqlite3
import time
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest
from mlflow.artifacts import download_artifacts
from sqlalchemy.engine import make_url

from distill.errors import UserError
from pipelines.tracking import store_uri
from pipelines.tracking.lineage import find_model
from pipelines.tracking.store import Store, _make_sqlite, existing_store
from pipelines.tracking.store_uri import check_store, sqlite_file, sqlite_uri
from pipelines.tracking.tracked_run import TrackedRun, describe_run

EVERYTHING = "-a b%20c?x=1#h&i+j;k:l'm\"n\\o\np\té日本[q]*|{r}@~ "
NAMES = [
    *("sp ace", "a%b", "my%20project", "%2e%2e", "a%2Fb", "what?x=1", "h#1", "a&b", "a+b", "a;b", "a:b", "it's", 'q"q'),
    *("back\\slash", "new\nline", "é日本", "-dash", "trailing ", "~", "a@b", "file:", ":memory:", "..x", EVERYTHING),
]


@pytest.fixture(autouse=True)
def own_store(monkeypatch):
    monkeypatch.setattr(store_uri, "ASKED_FOR", None)


@pytest.mark.parametrize("name", NAMES)
def test_a_work_directory_of_any_name_holds_its_store(name, database, tmp_path):
    """It contains database and artifacts, nothing is written beside it, and models are found by all their names."""
    work, model = tmp_path / name, tmp_path / name / "stages" / "one" / "model"
    model.mkdir(parents=True)
    (model / "weights").write_bytes(b"1")
    (tmp_path / "run").mkdir()
    shutil.copy(database, work)
    before = set(tmp_path.iterdir())

    store = Store(work, "x")
    describe_run(tmp_path / "run", {"stage": "distill"})
    tracked = TrackedRun(store, tmp_path / "run", "distill e2")
    tracked.log_file(model / "weights")
    model_id, uri = tracked.log_model_output("student", model, {}, upload=True)
    _, local_uri = tracked.log_model_output("teacher", model, {}, upload=False)
    version = tracked.register(model_id, "x-student", {})
    (model.parent / "stage.json").write_text(f'{{"model_id": "{model_id}"}}')

    with sqlite3.connect(work / "mlflow.db") as rows:
        [[location]] = rows.execute("select artifact_location from experiments where name = 'x'").fetchall()
    assert Path(url2pathname(urlsplit(location).path)) == work / "mlartifacts"
    assert set(tmp_path.iterdir()) == before
    assert Path(store.client.download_artifacts(tracked.run_id, "weights")).read_bytes() == b"1"
    assert store.model_files(model_id).is_relative_to(work / "mlartifacts")
    assert Path(download_artifacts(f"models:/x-student/{version}"), "weights").read_bytes() == b"1"
    assert Path(download_artifacts(local_uri)) == model

    again = existing_store(work)
    for one in (uri, local_uri, f"models:/x-student/{version}", str(model), str(model.parent), tracked.run_id):
        assert find_model(again, one) == model_id


def test_a_store_is_made_in_a_directory_of_such_a_name(tmp_path):
    """Also through a link, in the target directory of the link."""
    (tmp_path / "link").symlink_to(tmp_path / EVERYTHING)
    store = Store(tmp_path / "link", "x")
    assert store.client.get_experiment_by_name("x").experiment_id == store.experiment
    assert set(os.listdir(tmp_path)) == {"link", EVERYTHING}
    assert (tmp_path / EVERYTHING / "mlflow.db").is_file() and (tmp_path / EVERYTHING / "tracking.json").is_file()


def test_a_database_that_cannot_be_opened_fails_at_once(tmp_path):
    """MLflow itself would retry ten times, with increasing pauses."""
    (tmp_path / "mlflow.db").mkdir()
    began = time.monotonic()
    with pytest.raises(UserError, match="mlflow.db cannot be used: unable to open database file; check that it is"):
        Store(tmp_path, "x")
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("name", NAMES)
def test_sqlalchemy_and_we_read_the_path_that_was_written(name, tmp_path):
    path = tmp_path / name / "mlflow.db"
    assert make_url(sqlite_uri(path)).database == str(path) == str(sqlite_file(sqlite_uri(path)))


@pytest.mark.parametrize(
    "uri,path",
    [
        ("sqlite:////a/b.db", "/a/b.db"),
        ("sqlite:///b.db?timeout=3", "b.db"),
        ("sqlite:////a%20b/c.db", "/a b/c.db"),
        ("sqlite+pysqlite:////a/b.db", "/a/b.db"),
    ],
)
def test_the_file_of_an_sqlite_uri_is_the_one_that_sqlalchemy_opens(uri, path):
    assert str(sqlite_file(uri)) == path == make_url(uri).database


@pytest.mark.parametrize(
    "uri", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:/a/b.db?uri=true", "http://a/b.db", "postgresql://a/b"]
)
def test_other_stores_have_no_file(uri):
    assert sqlite_file(uri) is None


def test_paths_that_mlflow_cannot_store_are_refused_at_once(tmp_path):
    with pytest.raises(UserError, match=r"--workdir b.* has a name that is not UTF-8, which MLflow cannot store"):
        check_store(Path(os.fsdecode(b"b\xe9")))
    assert not list(tmp_path.iterdir())


def test_sqlite_opens_the_store_in_the_longest_work_directory(tmp_path):
    place = tmp_path / ("é" * 70) / ("b" * 100)
    longest = place / ("c" * (494 - len(os.fsencode(place)) - 1))
    one_more = longest.with_name(f"{longest.name}c")
    with pytest.raises(
        UserError, match="is too long: its whole path has 495 bytes, and SQLite, .* can use 494; choose"
    ):
        check_store(one_more)
    check_store(longest)
    for work in (longest, one_more):
        work.mkdir(parents=True)
    _make_sqlite(longest / "mlflow.db")
    with sqlite3.connect(longest / "mlflow.db") as store:
        store.execute("INSERT INTO experiment_tags VALUES ('a', 'b', 0)")
    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        sqlite3.connect(one_more / "mlflow.db")
