"""Metrics go to a local file at once, and from there to MLflow by a thread."""

import json
import logging
import math
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill.disk import is_full, named_when_full
from distill.files import write_text
from pipelines.store_uri import without_credentials

DELIVER_EVERY = 5.0  # seconds
LARGEST_BATCH = 900  # MLflow takes 1000 metrics at once


def cause_of(error: Exception) -> str:
    """Why MLflow did not take something, without its SQL and without credentials."""
    return "the disk is full" if is_full(error) else without_credentials(" ".join(str(error).split()))[:200]


class MetricFeed:
    """A file of metrics that a thread copies to MLflow, so that no step waits for a server or is lost to one."""

    def __init__(self, client: Any, run_id: str, path: Path):
        self.client, self.run_id, self.path, self.sent = client, run_id, path, path.with_suffix(".sent")
        self._last: dict[str, int] = {}
        end = 0
        for end, record in self._records(0):  # noqa: B007  its last value is used
            self._last |= dict.fromkeys(record["metrics"], record["step"])
        if path.exists():
            os.truncate(path, end)  # a line that a killed process began
        self._file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115  closed in close()
        self._stop, self._silent = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        new = {k: v for k, v in metrics.items() if math.isfinite(v) and step > self._last.get(k, -1)}
        if new:
            self._last |= dict.fromkeys(new, step)
            line = json.dumps({"time": int(time.time() * 1000), "step": step, "metrics": new}) + "\n"
            with named_when_full(self.path, len(line)):
                self._file.write(line)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._file.close()
        self._deliver()

    def _run(self) -> None:
        while not self._stop.wait(DELIVER_EVERY):
            try:
                self._deliver()
                self._silent = False
            except Exception as error:  # training must not end because a server is away
                if not self._silent:
                    warn = logging.getLogger(__name__).warning
                    warn("MLflow is away, metrics wait in %s: %s", self.path, cause_of(error))
                self._silent = True

    def _deliver(self) -> None:
        from mlflow.entities import Metric

        start = int(self.sent.read_text()) if self.sent.exists() else 0
        rows: list[Metric] = []
        for end, record in self._records(start):
            rows += [Metric(k, v, record["time"], record["step"]) for k, v in record["metrics"].items()]
            if len(rows) >= LARGEST_BATCH - 50:
                self._send(rows, end)
                rows = []
        if rows:
            self._send(rows, end)

    def _send(self, rows: list[Any], end: int) -> None:
        self.client.log_batch(self.run_id, metrics=rows)
        write_text(self.sent, str(end))

    def _records(self, start: int) -> Iterator[tuple[int, dict]]:
        """Whole lines from byte ``start`` on, each with the byte after it; a torn last line is left for later."""
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            file.seek(start)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                start += len(line)
                yield start, json.loads(line)
