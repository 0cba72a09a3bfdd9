import json
import logging
import time

import pytest

from distill.errors import UserError
from distill.io.files import directory_digest
from pipelines.tracking import metric_log as feed
from pipelines.tracking import store_uri
from pipelines.tracking.metric_log import MetricLog
from pipelines.tracking.run import TrackedRun, describe_run
from pipelines.tracking.store import Store
from pipelines.tracking.store_uri import redacted, without_credentials


class Server:
    """A store that is away for the first ``away`` calls, and keeps what it gets."""

    def __init__(self, away: int = 0):
        self.away, self.rows = away, []

    def send(self, metrics):
        if self.away:
            self.away -= 1
            raise ConnectionError("no server")
        self.rows += [(metric.key, metric.step, metric.value) for metric in metrics]


def close(metrics, store):
    metrics.close()
    feed.deliver(metrics.path, store.send)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(feed, "DELIVER_EVERY", 0.01)


def test_curves_arrive_in_order_and_in_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(feed, "LARGEST_BATCH", 60)
    server = Server()
    metrics = MetricLog(tmp_path / "metrics.jsonl", server.send)
    for step in range(200):
        metrics.log(step, {"loss": float(step), "bad": float("nan")})
    close(metrics, server)
    assert server.rows == [("loss", step, float(step)) for step in range(200)]


def test_a_server_that_is_away_loses_nothing_and_is_mentioned_once(tmp_path, caplog):
    server = Server(away=3)
    with caplog.at_level(logging.WARNING):
        metrics = MetricLog(tmp_path / "metrics.jsonl", server.send)
        metrics.log(1, {"loss": 1.0})
        while not server.rows:
            pass
        metrics.log(2, {"loss": 2.0})
        close(metrics, server)
    assert server.rows == [("loss", 1, 1.0), ("loss", 2, 2.0)]
    assert ["metrics wait in" in text for text in caplog.messages] == [True, False]
    assert "MLflow is back" in caplog.messages[1]


def test_a_resumed_feed_repeats_no_step_and_drops_a_torn_line(tmp_path):
    server = Server()
    path = tmp_path / "metrics.jsonl"
    first = MetricLog(path, server.send)
    first.log(1, {"loss": 1.0})
    first.log(2, {"loss": 2.0, "quality": -3.0})
    close(first, server)
    with open(path, "a") as file:
        file.write('{"time": 1, "step": 3, "met')  # killed while writing
    second = MetricLog(path, server.send)
    for step in (2, 3):  # goes on from a checkpoint at step 1
        second.log(step, {"loss": float(step), "quality": -2.0})
    close(second, server)
    assert server.rows == [
        ("loss", 1, 1.0),
        ("loss", 2, 2.0),
        ("quality", 2, -3.0),
        ("loss", 3, 3.0),
        ("quality", 3, -2.0),
    ]


def points(path) -> dict[tuple[str, int], float]:
    """What holds of a file of metrics: of a key, an earlier course only up to where a later one begins."""
    found: dict[tuple[str, int], float] = {}
    courses: dict[str, int] = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        for key, value in record["metrics"].items():
            if record.get("course", 0) > courses.get(key, 0):
                courses[key] = record["course"]
                found = {place: old for place, old in found.items() if place[0] != key or place[1] < record["step"]}
            assert (key, record["step"]) not in found  # nothing is repeated
            found[key, record["step"]] = value
    return found


@pytest.mark.parametrize("killed", [False, True])
def test_after_a_restart_the_new_course_holds_and_the_old_one_is_marked(tmp_path, killed):
    """Steps 10 to 60, back to 20, then 30 to 90, with a kill after 50 that goes on from 40."""
    path, server = tmp_path / "metrics.jsonl", Server()
    metrics = MetricLog(path, server.send)
    for step in range(10, 70, 10):
        metrics.log(step, {"loss": 1.0 * step, "quality": -1.0})
    while len(server.rows) < 12:  # by the feed's own thread, before training goes back
        time.sleep(0.01)
    metrics.begin_course(1)
    for step in (30, 40, 50):
        metrics.log(step, {"loss": 100.0 + step})
    if killed:
        close(metrics, server)
        metrics = MetricLog(path, server.send)
        metrics.begin_course(1)
    for step in range(40 if killed else 60, 100, 10):
        metrics.log(step, {"loss": 100.0 + step})
    close(metrics, server)
    expected = {10: 10.0, 20: 20.0, **{step: 100.0 + step for step in range(30, 100, 10)}}
    assert {step: value for (key, step), value in points(path).items() if key == "loss"} == expected
    last = {step: value for key, step, value in server.rows if key == "loss"}  # of each step, the later one
    assert last == expected
    marked = [(step, value) for key, step, value in server.rows if key == "abandoned/loss"]
    assert marked == [(30, 30.0), (40, 40.0), (50, 50.0), (60, 60.0)]
    assert len(server.rows) == len(set(server.rows)) and not [r for r in server.rows if r[0] == "abandoned/quality"]


def test_each_restart_marks_what_it_alone_gave_up(tmp_path):
    """To 40, back to 20, to 30, and back to 10."""
    path, server = tmp_path / "metrics.jsonl", Server()
    metrics = MetricLog(path, server.send)
    for course, steps in enumerate(((10, 20, 30, 40), (30,), (20, 30, 40, 50))):
        metrics.begin_course(course)
        for step in steps:
            metrics.log(step, {"loss": 100.0 * course + step})
    close(metrics, server)
    assert points(path) == {("loss", 10): 10.0, **{("loss", step): 200.0 + step for step in (20, 30, 40, 50)}}
    marked = [(step, value) for key, step, value in server.rows if key == "abandoned/loss"]
    assert marked == [(30, 30.0), (40, 40.0), (20, 20.0), (30, 130.0)]


def test_what_was_written_without_a_server_is_delivered_once_later(tmp_path):
    path, server = tmp_path / "metrics.jsonl", Server()
    metrics = MetricLog(path, None)
    metrics.log(1, {"loss": 1.0})
    metrics.close()
    for _ in range(2):
        feed.deliver(path, server.send)
    assert server.rows == [("loss", 1, 1.0)]


@pytest.mark.parametrize(
    "uri,shown",
    [
        ("https://me:secret@host:5000/x", "https://host:5000/x"),
        ("https://host:5000", "https://host:5000"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
        ("postgresql://host/db?user=me&password=secret&x=1", "postgresql://host/db?user=me&password=***&x=1"),
        ("http://me:secret@[broken", "http://[broken"),
    ],
)
def test_credentials_are_not_shown(uri, shown):
    assert redacted(uri) == shown


def test_an_error_that_quotes_the_store_is_said_without_credentials(monkeypatch):
    monkeypatch.setattr(store_uri, "ASKED_FOR", "https://me:secret@host/mlflow/")
    said = without_credentials("request to https://me:secret@host/mlflow/api/2.0 failed, see https://me:secret@host")
    assert said == "request to https://host/mlflow/api/2.0 failed, see https://host"


def test_stages_of_one_store_are_not_mixed_with_another(tmp_path, monkeypatch):
    (tmp_path / "tracking.json").write_text(json.dumps({"store": "https://elsewhere"}))
    monkeypatch.setattr(store_uri, "ASKED_FOR", None)
    with pytest.raises(UserError, match="tracked in https://elsewhere, not in the work directory's own store"):
        Store(tmp_path, "x")
    assert not (tmp_path / "mlflow.db").exists()


def test_a_store_that_cannot_be_used_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(store_uri, "ASKED_FOR", "nonsense://me:secret@host")
    with pytest.raises(UserError, match="nonsense://host cannot be used") as raised:
        Store(tmp_path, "x")
    assert "secret" not in str(raised.value)


def test_a_digest_sees_names_and_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    first = directory_digest(tmp_path)
    (tmp_path / "a").write_bytes(b"2")
    second = directory_digest(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert len({first, second, directory_digest(tmp_path)}) == 3 and len(first) == 32


def test_a_run_that_goes_on_elsewhere_says_both(tmp_path):
    for threads in ("2", "1", "2"):
        describe_run(tmp_path, {"threads": threads, "stage": "teacher"})
    tags = json.loads((tmp_path / "run.json").read_text())["tags"]
    assert (tags["threads"], tags["stage"]) == ("2, then 1", "teacher")
    (tmp_path / "run.json").write_text('{"run_id": "as an older version wrote it"}')
    describe_run(tmp_path, {"threads": "4"})
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["run_id"].startswith("as an older") and record["tags"]["threads"] == "4"


class Killed(BaseException):
    pass


class KilledAfter:
    """A client whose process is killed as soon as the store has taken its ``calls``-th call."""

    def __init__(self, client, calls):
        self.client, self.left = client, calls

    def __getattr__(self, name):
        def call(*values, **named):
            result = getattr(self.client, name)(*values, **named)
            self.left -= 1
            if not self.left:
                raise Killed
            return result

        return call


def log_a_stage(store, directory):
    describe_run(directory, {"stage": "distill"})
    tracked = TrackedRun(store, directory, "distill e2")
    tracked.log_model_output("student", directory / "model", {}, upload=True)
    tracked.close("FINISHED")


@pytest.mark.parametrize("calls", range(1, 9))
def test_a_process_killed_after_any_call_leaves_one_run_and_one_model(tmp_path, monkeypatch, calls):
    monkeypatch.setattr(store_uri, "ASKED_FOR", None)
    (tmp_path / "stage/model").mkdir(parents=True)
    (tmp_path / "stage/model/weights").write_bytes(b"1")
    store = Store(tmp_path, "x")
    client = store.client
    store.client = KilledAfter(client, calls)
    with pytest.raises(Killed):
        log_a_stage(store, tmp_path / "stage")
    store.client = client
    log_a_stage(store, tmp_path / "stage")
    (run,) = client.search_runs([store.experiment])
    ready = [model for model in client.search_logged_models([store.experiment]) if model.status == "READY"]
    assert (
        run.info.status == "FINISHED"
        and run.info.run_id == json.loads((tmp_path / "stage/run.json").read_text())["run_id"]
    )
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id for model in ready]
    assert len(ready) == 1


def test_params_are_kept_whole_up_to_the_length_that_mlflow_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(store_uri, "ASKED_FOR", None)
    store = Store(tmp_path, "x")
    describe_run(tmp_path, {"stage": "distill"})
    tracked = TrackedRun(store, tmp_path, "distill e2")
    tracked.log_params({"data": {"long": "x" * 6000, "longer": "y" * 6001, "list": [1, 2]}})
    params = store.client.get_run(tracked.run_id).data.params
    assert params == {"data.long": "x" * 6000, "data.longer": "y" * 5999 + "…", "data.list": "[1, 2]"}
