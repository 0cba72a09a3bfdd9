"""Kill a pipeline with SIGKILL at random moments, restart it, and compare its results with an uninterrupted run.

``python -m tests.chaos --kills 100``. Each trial is ``switch-distill run smoke`` in a new work directory. It is killed
(all of its processes at once) and restarted until it finishes. Trials are repeated until the number of kills is
reached.
"""

import argparse
import hashlib
import json
import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
# Entries of a report that name runs and models. These names differ in every store.
_NAMES = ("teacher_run_id", "student_run_id", "student_model_uri")


def start(workdir: Path, overrides: list[str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "pipelines.cli", "run", "smoke", "--workdir", str(workdir)]
    options = [f"--set={override}" for override in overrides]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": "", "OMP_NUM_THREADS": "1"}
    with open(workdir.with_suffix(".log"), "w") as log:  # a pipe without a reader would fill and block the run
        return subprocess.Popen(
            [*command, *options], cwd=ROOT, env=environment, start_new_session=True, stdout=log, stderr=log
        )


def result(workdir: Path) -> dict[str, Any]:
    """The results that kills must not change: weights, losses, report, and every point of every curve in MLflow."""
    report = json.loads((workdir / "report.json").read_text())
    rows = [{key: value for key, value in row.items() if key not in _NAMES} for row in report.pop("ratios")]
    found: dict[str, Any] = {"report": {**report, "ratios": rows}}
    for path in sorted(workdir.glob("stages/*/**/*")):
        if path.suffix == ".safetensors" or path.name.endswith("losses.json"):
            found[str(path.relative_to(workdir))] = hashlib.sha256(path.read_bytes()).hexdigest()
    with sqlite3.connect(workdir / "mlflow.db") as store:
        points = "SELECT r.name, m.key, m.step, m.value FROM metrics m JOIN runs r USING (run_uuid) ORDER BY 1, 2, 3, 4"
        runs = "SELECT name, status FROM runs ORDER BY 1"
        # The speed of a step varies.
        found["curves"] = [point for point in store.execute(points) if not point[1].endswith("tokens_per_second")]
        found["steps"] = sorted(row[:3] for row in store.execute(points))
        found["runs"] = store.execute(runs).fetchall()
        models = "SELECT name, status FROM logged_models ORDER BY 1"
        found["versions"] = store.execute("SELECT name, version FROM model_versions ORDER BY 1, 2").fetchall()
        ready = {2, "READY"}
        found["models"] = Counter(name for name, status in store.execute(models) if status in ready)
    return found


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """The names of the results that differ from the expected ones."""
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


def _unfinished(workdir: Path) -> list[Path]:
    stages = workdir.glob("stages/[!.]*")
    return [path for path in stages if path.is_dir() and not (path / "stage.json").exists()]


def _still_runs_at_a_random_moment(
    process: subprocess.Popen, workdir: Path, rng: random.Random, longest: float
) -> bool:
    """Wait for up to ``longest`` seconds, or in half of the cases for the start of a stage: some are short."""
    begun = {path.name.partition("-")[0] for path in workdir.glob("stages/[!.]*")}
    left = [kind for kind in ("baseline", "teacher", "init", "distill", "report") if kind not in begun]
    kind = rng.choice(left) if left and rng.random() < 0.5 else None
    end = time.monotonic() + (math.inf if kind else rng.uniform(0.5, longest))
    while time.monotonic() < end and process.poll() is None:
        if any(path.name.startswith(f"{kind}-") for path in _unfinished(workdir)):
            time.sleep(rng.uniform(0, rng.choice((0.05, 0.5))))
            break
        time.sleep(0.002)
    return process.poll() is None


def trial(workdir: Path, overrides: list[str], kills: int, rng: random.Random, longest: float) -> tuple[int, Counter]:
    """Run until it finishes, with up to ``kills`` kills; returns their number and the stage directory at each kill.

    Raises:
        RuntimeError: a run failed without a kill.
    """
    where: Counter = Counter()
    for number in range(kills + 1):
        process = start(workdir, overrides)
        if number == kills:
            process.wait()
        elif _still_runs_at_a_random_moment(process, workdir, rng, longest):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            where.update({path.name.partition("-")[0] for path in _unfinished(workdir)} or {"between stages"})
            continue
        if process.returncode:
            raise RuntimeError(
                f"a run after {number} kills ended with {process.returncode}: {workdir.with_suffix('.log').read_text()}"
            )
        return number, where
    return kills, where


def main(arguments: list[str] | None = None) -> int:
    """Exit code 1 if the results of a trial differ from those of the uninterrupted run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="a.b=c")
    asked = parser.parse_args(arguments)
    rng, killed, where, failures, trials = random.Random(asked.seed), 0, Counter(), [], 0
    with tempfile.TemporaryDirectory() as directory:
        unharmed = Path(directory) / "unharmed"
        began = time.perf_counter()
        trial(unharmed, asked.overrides, 0, rng, 0)
        longest = time.perf_counter() - began
        expected = result(unharmed)
        print(f"unharmed: {longest:.0f} s", flush=True)
        while killed < asked.kills:
            workdir = Path(directory) / f"killed-{trials}"
            number, stages = trial(workdir, asked.overrides, asked.kills - killed, rng, longest * 0.6)
            killed, where, trials = killed + number, where + stages, trials + 1
            wrong = differences(result(workdir), expected)
            failures += wrong
            print(f"trial {trials}: {number} kills, {', '.join(wrong) or 'the same result'}", flush=True)
    print(f"{killed} kills in {trials} trials: {dict(where)}; {len(failures)} differences")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
