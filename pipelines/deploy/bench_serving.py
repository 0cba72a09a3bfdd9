"""``switch-distill bench-serving``: measure every export of a student and plain transformers in interleaved rounds."""

import contextlib
import os
import pydoc_data.topics
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from distill.errors import UserError
from distill.io.files import directory_digest, make_directory
from distill.processor import read_processor
from pipelines.deploy.bench_candidates import Candidate, WaveTiming, start
from pipelines.deploy.export_source import find_source
from pipelines.deploy.serve import check_same_tokenizer, check_serving, export_in_process, stored_student
from pipelines.tracking.store_uri import ASKED_FOR
from students.export import FORMATS
from students.runtime import read_manifest

CONCURRENCY = {1: 4, 8: 2, 32: 1}  # concurrent requests -> waves of requests per round
PROMPT_WORDS = 20
BASELINE = "transformers float32"
# Candidates for the export behind the server, the fastest first.
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
    """Export ``model`` in every installed format and precision, and measure the exports in interleaved rounds.

    Args:
        model: the MODEL argument of the command line.
        teacher: the directory of the student's Switch teacher, to measure it too.
        text: files (a glob) to verify the exports on, for a model that no store knows.
        exports: directory in which exports are kept for reuse; None: a temporary directory.
        workdir: the work directory whose store knows the model.
        threads: threads of each model.
        rounds: number of rounds. A round measures every candidate once at each concurrency.
        max_tokens: number of tokens of every answer. No answer ends earlier, so all candidates do the same work.
        say: called with each line of progress.

    Returns:
        A dict with settings, processor, and arms, a list with an entry per candidate: name, disk_bytes, memory_bytes
        (resident after the first answer), loaded_memory_bytes (resident after the last answer), start_seconds (from the
        start of the process to its first answer), quality_difference (of the export, in nats; None if it has none), and
        concurrency, which maps each number of concurrent requests to tokens_per_second (median, min and max over the
        rounds), requests_per_second (median) and latency in seconds (p50, p95, p99).

    Raises:
        UserError: a candidate cannot be started or measured, the model cannot be exported, or ``exports`` is no
            directory or has an export of something else.
    """
    check_serving(model, teacher)
    prompts = make_prompts(max(CONCURRENCY))
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for the processes of the candidates
    with _export_directory(exports) as directory:
        candidates = _candidates(model, teacher, text, directory, workdir, say)
        running, fresh = {}, {}
        with contextlib.ExitStack() as started:  # stops all of them, also if one cannot be stopped
            for candidate in candidates:
                say(f"{candidate.name}: starting")
                running[candidate] = start(candidate, threads, prompts[0])
                started.callback(running[candidate].stop)
                fresh[candidate] = running[candidate].memory
            found = _measure_rounds(running, prompts, rounds, max_tokens, say)
            loaded = {candidate: process.memory for candidate, process in running.items()}
        # before a temporary directory of exports is removed
        facts = [
            _facts(candidate, running[candidate].start_seconds, fresh[candidate], loaded[candidate], found[candidate])
            for candidate in candidates
        ]
    settings = {"model": model, "threads": threads, "rounds": rounds, "max_tokens": max_tokens}
    return {"settings": settings, "processor": read_processor().name, "arms": facts}


def make_prompts(number: int) -> list[str]:
    """Prompts of English text from Python's documentation, each with a mask. The prompts are always the same."""
    words = " ".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics)).split()
    starts = range(0, number * PROMPT_WORDS, PROMPT_WORDS)
    pieces = [words[start : start + PROMPT_WORDS] for start in starts]
    return [" ".join([*piece[:8], "<extra_id_0>", *piece[10:]]) for piece in pieces]


def markdown_table(result: dict[str, Any]) -> str:
    """The table of docs/serving.md. Rates are medians; latencies are the 50th, 95th and 99th percentiles."""
    header = ["", *(f"tokens/s at {n}" for n in CONCURRENCY), "at 8, against plain"]
    header += [f"latency at {n}, ms" for n in CONCURRENCY] + ["memory, first / last", "start", "disk", "quality"]
    base = next(candidate for candidate in result["arms"] if candidate["name"] == BASELINE)
    lines = ["| " + " | ".join(header) + " |", "| :--- |" + " ---: |" * (len(header) - 1)]
    for candidate in result["arms"]:
        by = [candidate["concurrency"][str(n)] for n in CONCURRENCY]
        rate = candidate["concurrency"]["8"]["tokens_per_second"]["median"]
        plain = base["concurrency"]["8"]["tokens_per_second"]["median"]
        quality = candidate["quality_difference"]
        cells = [
            candidate["name"],
            *(f"{one['tokens_per_second']['median']:,.0f}" for one in by),
            f"{rate / plain:.2f} x",
            *(" / ".join(f"{one['latency'][p] * 1000:,.0f}" for p in ("p50", "p95", "p99")) for one in by),
            f"{candidate['memory_bytes'] / 1e6:,.0f} / {candidate['loaded_memory_bytes'] / 1e6:,.0f} MB",
            f"{candidate['start_seconds']:.1f} s",
            f"{candidate['disk_bytes'] / 1e6:,.0f} MB",
            "" if quality is None else f"{quality:+.4f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


@contextlib.contextmanager
def _export_directory(exports: Path | None) -> Iterator[Path]:
    """``exports``, created if it does not exist, or a temporary directory."""
    if exports is not None:
        if exports.is_file():
            raise UserError(f"--exports {exports} is a file; name a directory")
        make_directory(exports)
        yield exports
        return
    with tempfile.TemporaryDirectory(prefix="switch-distill-") as tmp_dir:
        yield Path(tmp_dir)


def _candidates(
    model: str, teacher: Path | None, text: str | None, directory: Path, workdir: Path, say: Callable[[str], None]
) -> list[Candidate]:
    made = _exports(model, teacher, text, directory, workdir, say)
    plain = made.pop(("hf", "float32"))
    candidates = [
        Candidate(f"transformers {dtype}", "transformers", plain, {"dtype": dtype}) for dtype in ("float32", "bfloat16")
    ]
    candidates += [Candidate(f"{format} {precision}", "runner", target) for (format, precision), target in made.items()]
    format, precision = next((kind for kind in _TO_SERVE if kind in made), ("hf", "float32"))
    target = made.get((format, precision), plain)
    timeout = {"timeout": 3600}  # seconds; 32 requests without batching take long
    candidates.append(Candidate(f"serve, {format} {precision}", "server", target, timeout))
    candidates.append(
        Candidate(f"serve, {format} {precision}, without batching", "server", target, {**timeout, "max-batch": 1})
    )
    if teacher is not None:
        candidates.append(Candidate("Switch teacher, transformers float32", "teacher", teacher))
    return candidates


def _exports(
    model: str, teacher: Path | None, text: str | None, directory: Path, workdir: Path, say: Callable[[str], None]
) -> dict[tuple[str, str], Path]:
    """The export in each format and precision: the one in ``directory``, or a new one there unless that fails."""
    wanted = {  # mlflow exports run transformers, like the first candidate
        (format, precision): directory / f"{format}-{precision}"
        for format in ("hf", "onnx", "ctranslate2")
        for precision in FORMATS[format][2]
    }
    found = {kind: target for kind, target in wanted.items() if (target / "manifest.json").is_file()}
    _check_reused(found, model, text, workdir)
    made = {}
    for (format, precision), target in wanted.items():
        if (format, precision) in found:
            say(f"{target}: reused")
        elif export_in_process(model, format, precision, target, workdir, text):
            if format == "hf":
                raise UserError(f"{model} cannot be exported, so it cannot be measured; see the error above")
            say(f"{format} {precision} is left out: the export failed")
            continue
        made[format, precision] = target
        if format == "hf":
            check_same_tokenizer(model, target, teacher)
    return made


def _check_reused(found: dict[tuple[str, str], Path], model: str, text: str | None, workdir: Path) -> None:
    """Check, before any slow export, that the exports ``found`` are of ``model``, and in their format and precision."""
    cure = "delete it, or choose another --exports"
    digest = _student_digest(model, text, workdir) if found else ""
    for (format, precision), target in found.items():
        manifest = read_manifest(target)
        own = (manifest["format"], manifest.get("precision"))
        if own != (format, precision):
            kinds = f"{own[0]} {own[1]}, not in {format} {precision}"
            raise UserError(f"{target} in --exports is an export in {kinds}; {cure}")
        student = stored_student(target)
        if student is None or student.sha256 != digest:
            other = f"{student.name} (weights {student.sha256[:12]})" if student else "an unknown student"
            known = f"{model} (weights {digest[:12]})"
            raise UserError(f"{target} in --exports is made from {other}, not from {known}; {cure}")


def _student_digest(model: str, text: str | None, workdir: Path) -> str:
    """The digest of the student that MODEL names, as the lineage.json of its exports has it."""
    try:
        source = find_source(model, workdir, text)
    finally:
        if not ASKED_FOR:  # mlflow sets it to the store that it opens, and the processes that export would read it
            os.environ.pop("MLFLOW_TRACKING_URI", None)
    return source.lineage["sha256"] if source.store else directory_digest(source.directory)


def _measure_rounds(
    running: dict[Candidate, Any], prompts: list[str], rounds: int, max_tokens: int, say: Callable[[str], None]
) -> dict[Candidate, dict[int, list[WaveTiming]]]:
    found: dict[Candidate, dict[int, list[WaveTiming]]] = {
        candidate: {n: [] for n in CONCURRENCY} for candidate in running
    }
    for process in running.values():
        process.measure(prompts[:8], max_tokens, 1)  # warm-up: allocates memory and selects kernels
    for round_ in range(rounds):
        say(f"round {round_ + 1} of {rounds}")
        for concurrency, calls in CONCURRENCY.items():
            for candidate, process in running.items():
                found[candidate][concurrency].append(process.measure(prompts[:concurrency], max_tokens, calls))
    return found


def _facts(
    candidate: Candidate, start_seconds: float, fresh: int, loaded: int, found: dict[int, list[WaveTiming]]
) -> dict[str, Any]:
    exact = candidate.kind in ("runner", "server")  # transformers does not compute in the export's precision
    return {
        "name": candidate.name,
        "disk_bytes": sum(file.stat().st_size for file in candidate.directory.rglob("*") if file.is_file()),
        "memory_bytes": fresh,
        "loaded_memory_bytes": loaded,
        "start_seconds": start_seconds,
        "quality_difference": read_manifest(candidate.directory)["parity"]["quality_difference"] if exact else None,
        "concurrency": {str(concurrency): _summary(waves) for concurrency, waves in found.items()},
    }


def _summary(waves: list[WaveTiming]) -> dict[str, Any]:
    rates = [wave.tokens / wave.seconds for wave in waves]
    latencies = [one for wave in waves for one in wave.latencies]
    p50, p95, p99 = np.percentile(latencies, (50, 95, 99))
    return {
        "tokens_per_second": {"median": statistics.median(rates), "min": min(rates), "max": max(rates)},
        "requests_per_second": statistics.median(len(wave.latencies) / wave.seconds for wave in waves),
        "latency": {"p50": float(p50), "p95": float(p95), "p99": float(p99)},
        "requests": len(latencies),
    }
