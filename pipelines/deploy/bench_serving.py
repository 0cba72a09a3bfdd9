"""``switch-distill bench-serving``: every export of a student against plain transformers, in one interleaved run."""

import contextlib
import os
import platform
import pydoc_data.topics
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from distill.errors import UserError
from pipelines.deploy.bench_arms import Arm, Measured, start
from pipelines.deploy.serve import check, check_same_tokenizer, export_in_process
from students.export import FORMATS
from students.runtime import read_manifest

CONCURRENCY = {1: 4, 8: 2, 32: 1}  # requests at once -> waves of them in a round
PROMPT_WORDS = 20
BASELINE = "transformers float32"
# The exports to put behind the server, the fastest first.
_TO_SERVE = (("onnx", "int8"), ("ctranslate2", "int8"), ("onnx", "float32"), ("ctranslate2", "float32"))


def bench_serving(
    model: str,
    teacher: Path | None,
    *,
    text: str | None,
    exports: Path | None,
    workdir: Path,
    threads: int,
    rounds: int,
    max_tokens: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Export ``model`` in every format and precision that is installed, and measure all of them in turns.

    Args:
        teacher: the directory of its Switch teacher, to be measured beside it.
        text: files (a glob) to verify the exports on, for a model that no store knows.
        exports: where exports are kept, and reused if they are there; a temporary directory if None.
        threads: of each model.
        rounds: each arm is measured once a round at each concurrency.
        max_tokens: of each answer, none of which ends earlier: all arms do the same work.

    Returns:
        settings, processor, and arms: name, disk_bytes, memory_bytes (resident after a first answer),
        loaded_memory_bytes (after the last), start_seconds (from the start of the process to its first answer),
        quality_difference (of the export, in nats; None where there is none) and, by concurrency, tokens_per_second
        (median, min and max over the rounds), requests_per_second (median) and latency in seconds (p50, p95, p99).

    Raises:
        UserError: the server cannot start, or the model cannot be exported.
    """
    check(model, teacher)
    prompts = make_prompts(max(CONCURRENCY))
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for the processes of the arms
    with _kept(exports) as directory:
        arms = _arms(model, teacher, text, directory, workdir, say)
        running, fresh, loaded = {}, {}, {}
        try:
            for arm in arms:
                say(f"{arm.name}: starting")
                running[arm] = start(arm, threads, prompts[0])
                fresh[arm] = running[arm].memory
            found = _in_turns(running, prompts, rounds, max_tokens, say)
            loaded = {arm: process.memory for arm, process in running.items()}
        finally:
            for process in running.values():
                process.stop()
        # While the exports are still there.
        facts = [_facts(arm, running[arm].start_seconds, fresh[arm], loaded[arm], found[arm]) for arm in arms]
    settings = {"model": model, "threads": threads, "rounds": rounds, "max_tokens": max_tokens}
    return {"settings": settings, "processor": platform.processor() or platform.machine(), "arms": facts}


def make_prompts(number: int) -> list[str]:
    """English from Python's own documentation, a mask in each, always the same."""
    words = " ".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics)).split()
    starts = range(0, number * PROMPT_WORDS, PROMPT_WORDS)
    pieces = [words[start : start + PROMPT_WORDS] for start in starts]
    return [" ".join([*piece[:8], "<extra_id_0>", *piece[10:]]) for piece in pieces]


def markdown(result: dict[str, Any]) -> str:
    """The table of docs/serving.md: figures are medians; latencies are of 50, 95 and 99 % of the requests."""
    header = ["", *(f"tokens/s at {n}" for n in CONCURRENCY), "at 8, against plain"]
    header += [f"latency at {n}, ms" for n in CONCURRENCY] + ["memory, first / last", "start", "disk", "quality"]
    base = next(arm for arm in result["arms"] if arm["name"] == BASELINE)
    lines = ["| " + " | ".join(header) + " |", "| :--- |" + " ---: |" * (len(header) - 1)]
    for arm in result["arms"]:
        by = [arm["concurrency"][str(n)] for n in CONCURRENCY]
        rate = arm["concurrency"]["8"]["tokens_per_second"]["median"]
        plain = base["concurrency"]["8"]["tokens_per_second"]["median"]
        quality = arm["quality_difference"]
        cells = [
            arm["name"],
            *(f"{one['tokens_per_second']['median']:,.0f}" for one in by),
            f"{rate / plain:.2f} x",
            *(" / ".join(f"{one['latency'][p] * 1000:,.0f}" for p in ("p50", "p95", "p99")) for one in by),
            f"{arm['memory_bytes'] / 1e6:,.0f} / {arm['loaded_memory_bytes'] / 1e6:,.0f} MB",
            f"{arm['start_seconds']:.1f} s",
            f"{arm['disk_bytes'] / 1e6:,.0f} MB",
            "" if quality is None else f"{quality:+.4f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


@contextlib.contextmanager
def _kept(exports: Path | None) -> Iterator[Path]:
    if exports is not None:
        exports.mkdir(parents=True, exist_ok=True)
        yield exports
        return
    with tempfile.TemporaryDirectory(prefix="switch-distill-") as tmp_dir:
        yield Path(tmp_dir)


def _arms(
    model: str, teacher: Path | None, text: str | None, directory: Path, workdir: Path, say: Callable[[str], None]
) -> list[Arm]:
    made = {}
    for format in ("hf", "onnx", "ctranslate2"):  # an mlflow export answers by transformers, as the first arm does
        for precision in FORMATS[format][2]:
            target = directory / f"{format}-{precision}"
            if (target / "manifest.json").is_file():
                if read_manifest(target)["format"] != format:
                    raise UserError(f"{target} in --exports is no {format} export; delete it, or name others")
                say(f"{target}: reused")
            elif export_in_process(model, format, precision, target, workdir, text):
                if format == "hf":
                    raise UserError(f"{model} cannot be exported, and so not be measured")
                say(f"{format} {precision} is left out: it cannot be exported here")
                continue
            made[format, precision] = target
            if format == "hf":
                check_same_tokenizer(model, target, teacher)
    plain = made.pop(("hf", "float32"))
    arms = [Arm(f"transformers {dtype}", "transformers", plain, {"dtype": dtype}) for dtype in ("float32", "bfloat16")]
    arms += [Arm(f"{format} {precision}", "runner", target) for (format, precision), target in made.items()]
    format, precision = next((kind for kind in _TO_SERVE if kind in made), ("hf", "float32"))
    target = made.get((format, precision), plain)
    patient = {"timeout": 3600}  # 32 requests one by one take a while
    arms.append(Arm(f"serve, {format} {precision}", "server", target, patient))
    arms.append(Arm(f"serve, {format} {precision}, without batching", "server", target, {**patient, "max-batch": 1}))
    if teacher is not None:
        arms.append(Arm("Switch teacher, transformers float32", "teacher", teacher))
    return arms


def _in_turns(
    running: dict[Arm, Any], prompts: list[str], rounds: int, max_tokens: int, say: Callable[[str], None]
) -> dict[Arm, dict[int, list[Measured]]]:
    found: dict[Arm, dict[int, list[Measured]]] = {arm: {n: [] for n in CONCURRENCY} for arm in running}
    for process in running.values():
        process.measure(prompts[:8], max_tokens, 1)  # warm: memory is allocated, kernels are chosen
    for round_ in range(rounds):
        say(f"round {round_ + 1} of {rounds}")
        for concurrency, calls in CONCURRENCY.items():
            for arm, process in running.items():
                found[arm][concurrency].append(process.measure(prompts[:concurrency], max_tokens, calls))
    return found


def _facts(arm: Arm, start_seconds: float, fresh: int, loaded: int, found: dict[int, list[Measured]]) -> dict[str, Any]:
    manifest = read_manifest(arm.directory) if (arm.directory / "manifest.json").is_file() else {}
    exact = arm.kind in ("runner", "server")  # what transformers computes in is not the export's precision
    return {
        "name": arm.name,
        "disk_bytes": sum(file.stat().st_size for file in arm.directory.rglob("*") if file.is_file()),
        "memory_bytes": fresh,
        "loaded_memory_bytes": loaded,
        "start_seconds": start_seconds,
        "quality_difference": manifest.get("parity", {}).get("quality_difference") if exact else None,
        "concurrency": {str(concurrency): _summary(waves) for concurrency, waves in found.items()},
    }


def _summary(waves: list[Measured]) -> dict[str, Any]:
    rates = [wave.tokens / wave.seconds for wave in waves]
    latencies = [one for wave in waves for one in wave.latencies]
    p50, p95, p99 = np.percentile(latencies, (50, 95, 99))
    return {
        "tokens_per_second": {"median": statistics.median(rates), "min": min(rates), "max": max(rates)},
        "requests_per_second": statistics.median(len(wave.latencies) / wave.seconds for wave in waves),
        "latency": {"p50": float(p50), "p95": float(p95), "p99": float(p99)},
        "requests": len(latencies),
    }
