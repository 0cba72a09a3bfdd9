"""Metrics go to a local file at once, and from there to MLflow by a thread."""

import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from distill.disk import is_full, named_when_full
from distill.files import write_text
from pipelines.store_uri import without_credentials

DELIVER_EVERY = 5.0  # seconds
LARGEST_BATCH = 900  # MLflow takes 1000 metrics at once
Send = Callable[[list[Any]], None]  # of MLflow's Metrics


def cause_of(error: Exception) -> str:
    """Why MLflow did not take something, without its SQL and without credentials."""
    return "the disk is full" if is_full(error) else without_credentials(" ".join(str(error).split()))[:200]


def deliver(path: Path, send: Send) -> None:
    """Send what the file holds and ``send`` has not taken before, in order.

    A file beside it says how far that is. Where a batch arrived but the answer did not, it is sent again with the
    times it had, and MLflow drops points that it has.
    """
    from mlflow.entities import Metric

    sent = path.with_suffix(".sent")
    start = int(sent.read_text()) if sent.exists() else 0
    rows: list[Metric] = []
    for end, record in _records(path, start):
        rows += [Metric(k, v, record["time"], record["step"]) for k, v in record["metrics"].items()]
        if len(rows) >= LARGEST_BATCH - 50:
            send(rows)
            write_text(sent, str(end))
            rows = []
    if rows:
        send(rows)
        write_text(sent, str(end))


class MetricFeed:
    """A file of metrics that a thread copies to MLflow, so that no step waits for a server or is lost to one.

    Without ``send`` they wait in the file for ``deliver``, and so does what the thread has not sent when it ends.
    """

    def __init__(self, path: Path, send: Send | None):
        self.path, self._last = path, dict[str, int]()
        end = 0
        for end, record in _records(path, 0):  # noqa: B007  its last value is used
            self._last |= dict.fromkeys(record["metrics"], record["step"])
        if path.exists():
            os.truncate(path, end)  # a line that a killed process began
        self._file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115  closed in close()
        self._stop, self._thread = threading.Event(), None
        if send:
            self._thread = threading.Thread(target=self._run, args=(send,), name="mlflow", daemon=True)
            self._thread.start()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Keep a point; a step seen before is not repeated."""
        new = {k: v for k, v in metrics.items() if math.isfinite(v) and step > self._last.get(k, -1)}
        if new:
            self._last |= dict.fromkeys(new, step)
            line = json.dumps({"time": int(time.time() * 1000), "step": step, "metrics": new}) + "\n"
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
