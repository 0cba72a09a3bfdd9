import json
import logging
import time

import pytest

from pipelines.tracking import metric_log
from pipelines.tracking.metric_log import MetricLog


class Server:
    """A store that fails for the first ``away`` calls, and records the points of all later calls."""

    def __init__(self, away: int = 0):
        self.away, self.rows = away, []

    def send(self, metrics):
        if self.away:
            self.away -= 1
            raise ConnectionError("no server")
        self.rows += [(metric.key, metric.step, metric.value) for metric in metrics]


def close(metrics, store):
    metrics.close()
    metric_log.send_new_metrics(metrics.path, store.send)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(metric_log, "SEND_INTERVAL", 0.01)


def test_curves_arrive_in_order_and_in_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(metric_log, "LARGEST_BATCH", 60)
    server = Server()
    metrics = MetricLog(tmp_path / "metrics.jsonl", server.send)
    for step in range(200):
        metrics.log(step, {"loss": float(step), "bad": float("nan")})
    close(metrics, server)
    assert server.rows == [("loss", step, float(step)) for step in range(200)]


def test_an_unreachable_server_loses_no_points_and_gives_one_message(tmp_path, caplog):
    server = Server(away=3)
    with caplog.at_level(logging.WARNING):
        metrics = MetricLog(tmp_path / "metrics.jsonl", server.send)
        metrics.log(1, {"loss": 1.0})
        while not server.rows:
            pass
        metrics.log(2, {"loss": 2.0})
        close(metrics, server)
    assert server.rows == [("loss", 1, 1.0), ("loss", 2, 2.0)]
    assert ["metrics are kept in" in text for text in caplog.messages] == [True, False]
    assert "MLflow is back" in caplog.messages[1]


def test_a_continued_log_repeats_no_step_and_drops_an_incomplete_line(tmp_path):
    server = Server()
    path = tmp_path / "metrics.jsonl"
    first = MetricLog(path, server.send)
    first.log(1, {"loss": 1.0})
    first.log(2, {"loss": 2.0, "quality": -3.0})
    close(first, server)
    with open(path, "a") as file:
        file.write('{"time": 1, "step": 3, "met')  # killed while writing
    second = MetricLog(path, server.send)
    for step in (2, 3):  # continues from a checkpoint at step 1
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
    """The points of a file that count: those of an earlier attempt only up to the first step of a later one."""
    found: dict[tuple[str, int], float] = {}
    attempts: dict[str, int] = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        for key, value in record["metrics"].items():
            if record.get("course", 0) > attempts.get(key, 0):
                attempts[key] = record["course"]
                found = {place: old for place, old in found.items() if place[0] != key or place[1] < record["step"]}
            assert (key, record["step"]) not in found  # no point occurs twice
            found[key, record["step"]] = value
    return found


@pytest.mark.parametrize("killed", [False, True])
def test_after_a_restart_the_new_attempt_counts_and_the_old_one_is_abandoned(tmp_path, killed):
    """Steps 10 to 60, back to 20, then 30 to 90, with a kill after 50 and a continuation from 40."""
    path, server = tmp_path / "metrics.jsonl", Server()
    metrics = MetricLog(path, server.send)
    for step in range(10, 70, 10):
        metrics.log(step, {"loss": 1.0 * step, "quality": -1.0})
    while len(server.rows) < 12:  # sent by the thread of the log before training goes back
        time.sleep(0.01)
    metrics.begin_attempt(1)
    for step in (30, 40, 50):
        metrics.log(step, {"loss": 100.0 + step})
    if killed:
        close(metrics, server)
        metrics = MetricLog(path, server.send)
        metrics.begin_attempt(1)
    for step in range(40 if killed else 60, 100, 10):
        metrics.log(step, {"loss": 100.0 + step})
    close(metrics, server)
    expected = {10: 10.0, 20: 20.0, **{step: 100.0 + step for step in range(30, 100, 10)}}
    assert {step: value for (key, step), value in points(path).items() if key == "loss"} == expected
    last = {step: value for key, step, value in server.rows if key == "loss"}  # the later point of each step
    assert last == expected
    marked = [(step, value) for key, step, value in server.rows if key == "abandoned/loss"]
    assert marked == [(30, 30.0), (40, 40.0), (50, 50.0), (60, 60.0)]
    assert len(server.rows) == len(set(server.rows)) and not [r for r in server.rows if r[0] == "abandoned/quality"]


def test_each_restart_abandons_only_its_own_points(tmp_path):
    """Steps 10 to 40, back to 20, up to 30, and back to 10."""
    path, server = tmp_path / "metrics.jsonl", Server()
    metrics = MetricLog(path, server.send)
    for attempt, steps in enumerate(((10, 20, 30, 40), (30,), (20, 30, 40, 50))):
        metrics.begin_attempt(attempt)
        for step in steps:
            metrics.log(step, {"loss": 100.0 * attempt + step})
    close(metrics, server)
    assert points(path) == {("loss", 10): 10.0, **{("loss", step): 200.0 + step for step in (20, 30, 40, 50)}}
    marked = [(step, value) for key, step, value in server.rows if key == "abandoned/loss"]
    assert marked == [(30, 30.0), (40, 40.0), (20, 20.0), (30, 130.0)]


@pytest.mark.parametrize("killed", [False, True])
def test_each_length_counts_its_own_restarts(tmp_path, killed):
    """The branch to 4 restarts once from step 2. Then the trunk restarts once too, from step 4, after steps 5 to 7."""
    path, server = tmp_path / "metrics.jsonl", Server()
    metrics = MetricLog(path, server.send)
    for prefix, attempt, steps in (("", 0, (1, 2)), ("4/", 0, (3, 4)), ("4/", 1, (3, 4)), ("", 0, (3, 4, 5, 6, 7))):
        metrics.begin_attempt(attempt, prefix)
        for step in steps:
            metrics.log(step, {"loss": 100.0 * attempt + step}, prefix)
    if killed:
        close(metrics, server)
        metrics = MetricLog(path, server.send)
    metrics.begin_attempt(1)
    for step in (5, 6, 7, 8):
        metrics.log(step, {"loss": 100.0 + step})
    close(metrics, server)
    trunk = {step: 1.0 * step for step in range(1, 5)} | {step: 100.0 + step for step in range(5, 9)}
    branch = {("4/loss", step): 100.0 + step for step in (3, 4)}
    assert points(path) == {("loss", step): value for step, value in trunk.items()} | branch
    marked = [(key, step, value) for key, step, value in server.rows if key.startswith("abandoned/")]
    expected = [("4/loss", 3, 3.0), ("4/loss", 4, 4.0), *(("loss", step, 1.0 * step) for step in (5, 6, 7))]
    assert marked == [(f"abandoned/{key}", step, value) for key, step, value in expected]


def test_points_written_without_a_server_are_sent_once_later(tmp_path):
    path, server = tmp_path / "metrics.jsonl", Server()
    metrics = MetricLog(path, None)
    metrics.log(1, {"loss": 1.0})
    metrics.close()
    for _ in range(2):
        metric_log.send_new_metrics(path, server.send)
    assert server.rows == [("loss", 1, 1.0)]
