"""Metrics go to a local file at once, and from there to MLflow by a thread.

Training that diverges may go back and take another course. The first point of that course replaces those of the same
key that earlier courses have from its step on: these are abandoned. The file names the course of each point; a point
without one is of the first. MLflow keeps every point: it has the abandoned ones once more under ``abandoned/<key>``,
and of two points of a key and step the later one holds.
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

from distill.io.disk import named_when_full
from distill.io.files import write_text
from pipelines.tracking.store_uri import cause_of

DELIVER_EVERY = 5.0  # seconds
LARGEST_BATCH = 900  # MLflow takes 1000 metrics at once
Send = Callable[[list[Any]], None]  # of MLflow's Metrics


def deliver(path: Path, send: Send) -> None:
    """Send what the file holds and ``send`` has not taken before, in order.

    A file beside it says how far that is. Where a batch arrived but the answer did not, it is sent again with the
    times it had, and MLflow drops points that it has.
    """
    from mlflow.entities import Metric

    sent = path.with_suffix(".sent")
    start = int(sent.read_text()) if sent.exists() else 0
    rows: list[Metric] = []
    begun: set[tuple[str, int]] = set()  # courses whose abandoned points were looked for, by key
    for end, record in _records(path, start):
        rows += [Metric(k, v, record["time"], record["step"]) for k, v in record["metrics"].items()]
        course = record.get("course", 0)
        if course and (keys := {key for key in record["metrics"] if (key, course) not in begun}):
            begun |= {(key, course) for key in keys}
            rows += [Metric(f"abandoned/{key}", *point) for key, point in _abandoned(path, end, record, keys)]
        if len(rows) >= LARGEST_BATCH - 50:
            send(rows)
            write_text(sent, str(end))
            rows = []
    if rows:
        send(rows)
        write_text(sent, str(end))


class MetricLog:
    """A file of metrics that a thread copies to MLflow, so that no step waits for a server or is lost to one.

    Without ``send`` they wait in the file for ``deliver``, and so does what the thread has not sent when it ends.
    """

    def __init__(self, path: Path, send: Send | None):
        self.path, self._course = path, 0
        self._last = dict[str, tuple[int, int]]()  # course and step
        end = 0
        for end, record in _records(path, 0):  # noqa: B007  its last value is used
            self._course = max(self._course, record.get("course", 0))
            self._last |= dict.fromkeys(record["metrics"], (record.get("course", 0), record["step"]))
        if path.exists():
            os.truncate(path, end)  # a line that a killed process began
        self._file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115  closed in close()
        self._stop, self._thread = threading.Event(), None
        if send:
            self._thread = threading.Thread(target=self._run, args=(send,), name="mlflow", daemon=True)
            self._thread.start()

    def begin_course(self, number: int) -> None:
        """What is logged from now on is of course ``number``, or of the latest that there was."""
        self._course = max(self._course, number)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Keep a point of this course; a step that it has been at is not repeated."""
        here = (self._course, step)
        new = {k: v for k, v in metrics.items() if math.isfinite(v) and here > self._last.get(k, (0, -1))}
        if new:
            self._last |= dict.fromkeys(new, here)
            course = {"course": self._course} if self._course else {}
            line = json.dumps({"time": int(time.time() * 1000), "step": step, **course, "metrics": new}) + "\n"
            with named_when_full(self.path, len(line)):
                self._file.write(line)

    def close(self) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()
        self._file.close()

    def _run(self, send: Send) -> None:
        silent, say = False, logging.getLogger(__name__).warning
        while not self._stop.wait(DELIVER_EVERY):
            try:
                deliver(self.path, send)
                if silent:
                    say("MLflow is back, and has the metrics that waited in %s", self.path)
                silent = False
            except Exception as error:  # training must not end because a server is away
                if not silent:
                    say("MLflow is away, metrics wait in %s: %s", self.path, cause_of(error))
                silent = True


def _abandoned(path: Path, end: int, record: dict, keys: set[str]) -> Iterator[tuple[str, tuple[float, int, int]]]:
    """Of ``keys``, the points (value, time, step) that the course of ``record``, which ends at byte ``end``, replaces.

    None of a key whose course has begun before that record.
    """
    earlier: dict[str, list[tuple[float, int, int]]] = {key: [] for key in keys}
    courses = dict.fromkeys(keys, 0)
    for place, other in _records(path, 0):
        if place >= end:
            break
        for key in earlier.keys() & other["metrics"].keys():
            course, step = other.get("course", 0), other["step"]
            if course == record["course"]:
                del earlier[key]
                continue
            if course > courses[key]:  # what it replaced has been abandoned before
                courses[key] = course
                earlier[key] = [point for point in earlier[key] if point[2] < step]
            earlier[key].append((other["metrics"][key], other["time"], step))
    for key, points in earlier.items():
        yield from ((key, point) for point in points if point[2] >= record["step"])


def _records(path: Path, start: int) -> Iterator[tuple[int, dict]]:
    """Whole lines from byte ``start`` on, each with the byte after it; a torn last line is left for later."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                return
            start += len(line)
            yield start, json.loads(line)
