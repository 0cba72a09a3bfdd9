"""Curves are written to a local file at once, and a thread sends them to MLflow.

Training that diverges may go back to a checkpoint and start another attempt. The first point of a new attempt replaces
all points of earlier attempts that have the same key and the same step or a later one. These points are abandoned. The
file records the attempt of each point, except for points of the first attempt. MLflow keeps all points. The abandoned
points are logged there again under ``abandoned/<key>``, and if a key has two points at a step, the later one counts.
"""

import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from distill.io.disk import disk_full_errors
from distill.io.files import write_text
from pipelines.tracking.store_uri import cause_of

SEND_INTERVAL = 5.0  # seconds
LARGEST_BATCH = 900  # metrics in a request; MLflow accepts 1000
Send = Callable[[list[Any]], None]  # takes a list of MLflow's Metric entities


def send_new_metrics(path: Path, send: Send) -> None:
    """Send the points of the file that were not sent before, in order.

    A second file, with the suffix ``.sent``, stores the number of bytes sent. If MLflow received a batch but its answer
    was lost, the batch is sent again with the same times, and MLflow drops the duplicates.

    Args:
        path: the file of a ``MetricLog``.
        send: sends a batch. An exception that it raises is passed on, and the batch counts as not sent.
    """
    from mlflow.entities import Metric

    sent = path.with_suffix(".sent")
    start = int(sent.read_text()) if sent.exists() else 0
    rows: list[Metric] = []
    begun: set[tuple[str, int]] = set()  # attempts whose abandoned points were looked for, by key
    for end, record in _records(path, start):
        rows += [Metric(k, v, record["time"], record["step"]) for k, v in record["metrics"].items()]
        attempt = record.get("course", 0)
        if attempt and (keys := {key for key in record["metrics"] if (key, attempt) not in begun}):
            begun |= {(key, attempt) for key in keys}
            rows += [Metric(f"abandoned/{key}", *point) for key, point in _abandoned(path, end, record, keys)]
        if len(rows) >= LARGEST_BATCH - 50:
            send(rows)
            write_text(sent, str(end))
            rows = []
    if rows:
        send(rows)
        write_text(sent, str(end))


class MetricLog:
    """A file of curves that a thread copies to MLflow, so that training never waits for a server and loses no point.

    Points that the thread has not sent at its end stay in the file for ``send_new_metrics``. Without ``send``, there is
    no thread, and all points stay in the file.
    """

    def __init__(self, path: Path, send: Send | None):
        self.path = path
        self._attempts = dict[str, int]()  # by the prefix of the keys
        self._last = dict[str, tuple[int, int]]()  # attempt and step, by key
        end = 0
        for end, record in _records(path, 0):  # noqa: B007  the last value of end is used
            self._last |= dict.fromkeys(record["metrics"], (record.get("course", 0), record["step"]))
        if path.exists():
            os.truncate(path, end)  # removes an incomplete last line of a killed process
        self._file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115  closed in close()
        self._stop, self._thread = threading.Event(), None
        if send:
            self._thread = threading.Thread(target=self._run, args=(send,), name="mlflow", daemon=True)
            self._thread.start()

    def begin_attempt(self, number: int, prefix: str = "") -> None:
        """Count the next points with ``prefix`` as points of attempt ``number``, or of their latest if it is greater.

        Trainings to several lengths share the file. Each has a prefix of its own, and restarts by itself.
        """
        self._attempts[prefix] = number

    def log(self, step: int, metrics: dict[str, float], prefix: str = "") -> None:
        """Write a point of each curve at ``step``. Values that are not finite are left out.

        A key that already has a point at this step or a later one in this attempt is left out too, so that a continued
        run repeats no points.

        Args:
            step: of all points.
            metrics: by key without ``prefix``.
            prefix: is put before each key.

        Raises:
            DiskFull: the point could not be written.
        """
        named = {f"{prefix}{key}": value for key, value in metrics.items() if math.isfinite(value)}
        attempt = max([self._attempts.get(prefix, 0), *(self._last[key][0] for key in named if key in self._last)])
        here = (attempt, step)
        new = {key: value for key, value in named.items() if here > self._last.get(key, (0, -1))}
        if new:
            self._last |= dict.fromkeys(new, here)
            course = {"course": attempt} if attempt else {}
            line = json.dumps({"time": int(time.time() * 1000), "step": step, **course, "metrics": new}) + "\n"
            with disk_full_errors(self.path, len(line)):
                self._file.write(line)

    def close(self) -> None:
        """Stop the thread and close the file."""
        self._stop.set()
        if self._thread:
            self._thread.join()
        self._file.close()

    def _run(self, send: Send) -> None:
        silent, say = False, logging.getLogger(__name__).warning
        while not self._stop.wait(SEND_INTERVAL):
            try:
                send_new_metrics(self.path, send)
                if silent:
                    say("MLflow is back and has received the metrics in %s", self.path)
                silent = False
            except Exception as error:  # training must not end because a server is unreachable
                if not silent:
                    say("MLflow is unreachable, metrics are kept in %s: %s", self.path, cause_of(error))
                silent = True


def _abandoned(
    path: Path, end: int, record: dict[str, Any], keys: set[str]
) -> Iterator[tuple[str, tuple[float, int, int]]]:
    """The points (value, time, step) of ``keys`` that the attempt of ``record`` replaces.

    A key that has an earlier point in this attempt gives no points: its first point has replaced them.

    Args:
        end: the byte of the file at which ``record`` ends.
    """
    earlier: dict[str, list[tuple[float, int, int]]] = {key: [] for key in keys}
    attempts = dict.fromkeys(keys, 0)
    for place, other in _records(path, 0):
        if place >= end:
            break
        for key in earlier.keys() & other["metrics"].keys():
            attempt, step = other.get("course", 0), other["step"]
            if attempt == record["course"]:
                del earlier[key]
                continue
            if attempt > attempts[key]:  # the points that it replaced are abandoned already
                attempts[key] = attempt
                earlier[key] = [point for point in earlier[key] if point[2] < step]
            earlier[key].append((other["metrics"][key], other["time"], step))
    for key, points in earlier.items():
        yield from ((key, point) for point in points if point[2] >= record["step"])


def _records(path: Path, start: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Complete lines from byte ``start`` on, each with the byte offset of its end. Skips an incomplete last line."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                return
            start += len(line)
            yield start, json.loads(line)
