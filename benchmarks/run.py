"""All speeds of docs/performance.md: ``make bench``. Nothing else should run on the machine at the same time.

Each candidate runs in its own process. The candidates are timed in turns, over several rounds. A factor is the ratio of
the medians, with its range over rounds.
"""

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.layers import ffn_step, gradient_bytes, loss_step, product_step
from benchmarks.library import hard_loss_step, norm_step, optimizer_update
from benchmarks.models import LENGTHS, our_step, plain_step, step_operations
from benchmarks.others import command_seconds, extra_memory, loader_rate
from benchmarks.timing import Candidate, Timing, alternate, ratios
from distill.io.files import write_json

STDERR = Console(stderr=True)


class Results:
    """Rows of the table, and the timings that they are computed from."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.timings: dict[str, Any] = {}

    def add(self, measure: str, against: str, value: dict[str, float] | float, target: str, met: bool) -> None:
        """Add a row. ``met`` says whether ``value`` meets ``target``."""
        self.rows.append({"measure": measure, "against": against, "value": value, "target": target, "met": met})

    def time(self, part: str, candidates: list[Candidate], rounds: int) -> dict[str, Timing]:
        """Time ``candidates`` with ``alternate``, and keep the timings under the name ``part``."""
        STDERR.print(f"{part}: {', '.join(candidate.name for candidate in candidates)}", highlight=False)
        timings = alternate(candidates, rounds)
        self.timings[part] = {name: timing.facts() for name, timing in timings.items()}
        return timings

    def add_speedup(self, measure: str, against: str, slow: Timing, fast: Timing, at_least: float) -> None:
        """Add a row with the speed-up of ``fast`` over ``slow``."""
        factor = ratios(slow, fast)
        self.add(measure, against, factor, f"at least {at_least:g} x", factor["median"] >= at_least)

    def add_slowdown(self, measure: str, against: str, fast: Timing, slow: Timing, at_most: float) -> None:
        """Add a row with the slowdown of ``slow`` relative to ``fast``."""
        factor = ratios(slow, fast)
        self.add(measure, against, factor, f"at most {at_most:g} x", factor["median"] <= at_most)


def base_step(results: Results) -> None:
    """The distillation step at T5-Base size with a teacher of 8 experts.

    Each loop has its own batch size. The plain loop is no faster per token with batches larger than 2.
    """
    tokens, small = LENGTHS["base"][1], 2
    for precision, name, batch, rounds, target in (("bf16", "autocast", 8, 3, 1.6), ("no", "float32", 8, 2, 4.0)):
        ours = Candidate("ours", our_step, {"size": "base", "batch": batch, "labels": "online"}, work=batch * tokens)
        plain = Candidate(
            name, plain_step, {"size": "base", "batch": small, "mixed_precision": precision}, small * tokens
        )
        product = Candidate("product 2048^3", product_step, {}, work=2.0 * 2048**3, repeats=20)
        timings = results.time(f"step, T5-Base, against {name}", [product, plain, ours], rounds)
        results.add_speedup("distillation step, T5-Base", f"plain loop, {name}", timings[name], timings["ours"], target)
        if precision == "bf16":
            rate = step_operations("base", batch) / timings["ours"].median
            share = rate / timings[product.name].rate
            results.add("its model FLOP utilisation", "product 2048^3", share, "at least 55 %", share >= 0.55)


def cached_labels(results: Results) -> None:
    """The step with cached labels, compared with the step with hard labels alone."""
    for size, batch, repeats, rounds in (("base", 2, 1, 4), ("small", 16, 20, 9)):
        candidates = [
            Candidate(labels, our_step, {"size": size, "batch": batch, "labels": labels}, repeats=repeats)
            for labels in ("hard", "cached")
        ]
        timings = results.time(f"cached labels, {size}", candidates, rounds)
        results.add_slowdown(f"step with cached labels, {size}", "hard labels", timings["hard"], timings["cached"], 1.1)


def small_step(results: Results) -> None:
    """The distillation step at the small size."""
    batch = 16
    ours = Candidate("ours", our_step, {"size": "small", "batch": batch, "labels": "online"}, batch, repeats=20)
    plain = Candidate(
        "autocast", plain_step, {"size": "small", "batch": batch, "mixed_precision": "bf16"}, batch, repeats=20
    )
    timings = results.time("step, small", [plain, ours], rounds=15)
    results.add_speedup("distillation step, small", "plain loop, autocast", timings["autocast"], timings["ours"], 2.5)


def loss(results: Results) -> None:
    """The mixed loss at 4,096 tokens."""
    kinds = ["unfused", "ours"]
    try:
        import liger_kernel  # noqa: F401

        kinds.append("liger")
    except ImportError:
        STDERR.print("loss: liger-kernel is not installed (pip install --no-deps liger-kernel), so it is not measured")
    candidates = [Candidate(kind, loss_step, {"kind": kind, "num_tokens": 4096}) for kind in kinds]
    timings = results.time("loss, 4,096 tokens", candidates, rounds=5)
    results.add_speedup("loss, forward and backward", "unfused", timings["unfused"], timings["ours"], 2.5)
    if "liger" in timings:
        results.add_speedup("loss, forward and backward", "Liger's", timings["liger"], timings["ours"], 1.0)


def loss_memory(results: Results) -> None:
    """The resident memory of the mixed loss, without its inputs and the gradients that it returns."""
    extra = {
        kind: {
            n: extra_memory(Candidate(kind, loss_step, {"kind": kind, "num_tokens": n})) - gradient_bytes(n)
            for n in numbers_of_tokens
        }
        for kind, numbers_of_tokens in (("chunked", (4096, 16384, 32768)), ("unfused", (2048, 4096)))
    }
    results.timings["extra bytes"] = extra
    ours, plain = extra["chunked"], extra["unfused"]
    # At 16,384 tokens the unfused loss may not fit in memory. Its memory is linear in the number of tokens.
    at_16k = plain[4096] + (plain[4096] - plain[2048]) * (16384 - 4096) / 2048
    share = ours[16384] / at_16k
    results.add(
        "extra memory of the loss, 16,384 tokens", "unfused, extrapolated", share, "at most 1/20", share <= 1 / 20
    )
    growth = ours[32768] / ours[4096]
    results.add("the same, 32,768 tokens", "4,096 tokens", growth, "flat (1.25 x)", growth <= 1.25)


def switch_layer(results: Results) -> None:
    """A Switch layer with 8 to 128 experts, compared with a dense FFN and, at 128, with transformers' Switch layer."""
    num_tokens = 8192
    for experts in (8, 32, 64, 128):
        kinds = ["dense", "ours", *(["transformers"] if experts == 128 else [])]
        settings = {"experts": experts, "num_tokens": num_tokens}
        candidates = [Candidate(kind, ffn_step, {**settings, "kind": kind}, num_tokens) for kind in kinds]
        timings = results.time(f"Switch layer, {experts} experts", candidates, rounds=7)
        ours = timings["ours"]
        results.add_slowdown(f"Switch layer, {experts} experts", "dense FFN", timings["dense"], ours, 1.25)
        if "transformers" in timings:
            results.add_speedup("Switch layer, 128 experts", "transformers'", timings["transformers"], ours, 2.0)


def library(results: Results) -> None:
    """Optimizers, loss and normalisation, compared with those of torch."""
    measures = [(name, optimizer_update, {"name": name}, 20) for name in ("adafactor", "muon")]
    measures += [("loss of hard labels, 512 tokens", hard_loss_step, {"num_tokens": 512}, 1)]
    measures += [("normalisation, 8,192 tokens", norm_step, {"num_tokens": 8192}, 2)]
    for measure, build, settings, repeats in measures:
        kinds = ("torch", "ours")
        candidates = [Candidate(kind, build, {**settings, "kind": kind}, repeats=repeats) for kind in kinds]
        timings = results.time(measure, candidates, rounds=7)
        results.add_speedup(measure, "torch's", timings["torch"], timings["ours"], 1.0)


def loader(results: Results) -> None:
    """The rate of the loader, compared with the rate of the step with hard labels, the fastest one."""
    for size, batch in (("small", 16), ("base", 2)):
        candidate = Candidate("hard", our_step, {"size": size, "batch": batch, "labels": "hard"}, batch)
        step = results.time(f"loader, {size}", [candidate], rounds=5 if size == "small" else 1)["hard"]
        rate = loader_rate(LENGTHS[size][0], batch)
        results.timings[f"loader, {size}"]["examples_per_second"] = rate
        factor = rate / step.rate
        results.add(f"loader, {size}", "examples that the step takes", factor, "at least 10 x", factor >= 10)


def startup(results: Results) -> None:
    """The duration of commands, in seconds."""
    seconds = command_seconds("--help")
    results.add("switch-distill --help", "seconds", seconds, "less than 0.5", seconds < 0.5)
    with tempfile.TemporaryDirectory() as directory:
        command = ("run", "smoke", "--workdir", directory)
        command_seconds(*command, repeats=1)
        seconds = command_seconds(*command, repeats=3)
    results.add("a finished run again", "seconds", seconds, "less than 3", seconds < 3)


def compiled(results: Results) -> None:
    """The step at the small size with torch.compile, compared with the step without it. Compilation is not timed."""
    settings = {"size": "small", "batch": 16, "labels": "online"}
    candidates = [
        Candidate("eager", our_step, settings, repeats=20),
        Candidate("compiled", our_step, {**settings, "compiled": True}, repeats=20),
    ]
    timings = results.time("torch.compile, small", candidates, rounds=5)
    results.add_speedup("compiled step, small", "eager step", timings["eager"], timings["compiled"], 1.1)


ALL = (loss, loss_memory, library, switch_layer, small_step, cached_labels, loader, startup, base_step)
PARTS = {part.__name__: part for part in (*ALL, compiled)}


def main(
    only: Annotated[str, typer.Option(help=f"Parts to measure, separated by commas: {', '.join(PARTS)}.")] = ",".join(
        part.__name__ for part in ALL
    ),
    output: Annotated[Path, typer.Option(help="JSON file. Parts that are not measured now stay unchanged.")] = Path(
        "work/benchmarks.json"
    ),
) -> None:
    """Measure speeds, write them as JSON, and print a table of all parts in the JSON file."""
    if unknown := set(only.split(",")) - set(PARTS):
        raise typer.BadParameter(f"unknown part {', '.join(sorted(unknown))}; use one of {', '.join(PARTS)}")
    output.parent.mkdir(parents=True, exist_ok=True)
    parts = json.loads(output.read_text())["parts"] if output.exists() else {}
    machine = {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    start = time.perf_counter()
    for name in only.split(","):
        results, part_start = Results(), time.perf_counter()
        PARTS[name](results)
        minutes = (time.perf_counter() - part_start) / 60
        parts[name] = {"rows": results.rows, "timings": results.timings, "machine": machine, "minutes": minutes}
        write_json(output, {"parts": parts})
    table = Table("measure", "against", "result", "target", "met", box=box.SIMPLE_HEAD)
    for row in (row for name in PARTS if name in parts for row in parts[name]["rows"]):
        table.add_row(
            row["measure"], row["against"], _format(row["value"]), row["target"], "yes" if row["met"] else "no"
        )
    Console(width=120).print(table)
    STDERR.print(f"{output}: {(time.perf_counter() - start) / 60:.0f} minutes", highlight=False)


def _format(value: dict[str, float] | float) -> str:
    if isinstance(value, dict):
        return f"{value['median']:.2f} x [{value['min']:.2f}, {value['max']:.2f}]"
    return f"{value:.3g}"


if __name__ == "__main__":
    typer.run(main)
