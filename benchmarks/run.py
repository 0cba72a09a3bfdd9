"""Every speed that docs/performance.md states: ``make bench``. Leave the machine alone while it runs.

A factor is the median over rounds in which the arms take turns, with its range; each arm runs in a process of its own.
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

from benchmarks.arms import Arm, Timing, alternate, ratios
from benchmarks.layers import ffn_step, gradient_bytes, loss_step, product_step
from benchmarks.models import LENGTHS, our_step, plain_step, step_operations
from benchmarks.others import answer_seconds, extra_memory, loader_rate
from distill.io.files import write_json

STDERR = Console(stderr=True)


class Results:
    """Rows of the table, and the timings behind them."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.timings: dict[str, Any] = {}

    def add(self, measure: str, against: str, value: dict[str, float] | float, target: str, met: bool) -> None:
        self.rows.append({"measure": measure, "against": against, "value": value, "target": target, "met": met})

    def time(self, part: str, arms: list[Arm], rounds: int) -> dict[str, Timing]:
        """``alternate``, remembered."""
        STDERR.print(f"{part}: {', '.join(arm.name for arm in arms)}", highlight=False)
        timings = alternate(arms, rounds)
        self.timings[part] = {name: timing.facts() for name, timing in timings.items()}
        return timings

    def faster(self, measure: str, against: str, slow: Timing, fast: Timing, at_least: float) -> None:
        factor = ratios(slow, fast)
        self.add(measure, against, factor, f"at least {at_least:g} x", factor["median"] >= at_least)

    def slower(self, measure: str, against: str, fast: Timing, slow: Timing, at_most: float) -> None:
        factor = ratios(slow, fast)
        self.add(measure, against, factor, f"at most {at_most:g} x", factor["median"] <= at_most)


def base_step(results: Results) -> None:
    """The distillation step at T5-Base size with a teacher of 8 experts, each loop at a batch that suits it.

    The plain loop is no faster per token with larger batches than 2.
    """
    tokens, small = LENGTHS["base"][1], 2
    for precision, name, batch, rounds, target in (("bf16", "autocast", 8, 3, 1.6), ("no", "float32", 8, 2, 4.0)):
        ours = Arm("ours", our_step, {"size": "base", "batch": batch, "labels": "online"}, work=batch * tokens)
        plain = Arm(name, plain_step, {"size": "base", "batch": small, "mixed_precision": precision}, small * tokens)
        product = Arm("product 2048^3", product_step, {}, work=2.0 * 2048**3, repeats=20)
        found = results.time(f"step, T5-Base, against {name}", [product, plain, ours], rounds)
        results.faster("distillation step, T5-Base", f"plain loop, {name}", found[name], found["ours"], target)
        if precision == "bf16":
            rate = step_operations("base", batch) / found["ours"].median
            share = rate / found[product.name].rate
            results.add("its model FLOP utilisation", "product 2048^3", share, "at least 55 %", share >= 0.55)


def cached_labels(results: Results) -> None:
    """Steps with cached labels against steps with hard labels alone."""
    for size, batch, repeats, rounds in (("base", 2, 1, 4), ("demo", 16, 20, 9)):
        arms = [
            Arm(labels, our_step, {"size": size, "batch": batch, "labels": labels}, repeats=repeats)
            for labels in ("hard", "cached")
        ]
        found = results.time(f"cached labels, {size}", arms, rounds)
        results.slower(f"step with cached labels, {size}", "hard labels", found["hard"], found["cached"], 1.1)


def demo_step(results: Results) -> None:
    """The distillation step at the demo's size."""
    batch = 16
    ours = Arm("ours", our_step, {"size": "demo", "batch": batch, "labels": "online"}, batch, repeats=20)
    plain = Arm("autocast", plain_step, {"size": "demo", "batch": batch, "mixed_precision": "bf16"}, batch, repeats=20)
    found = results.time("step, demo", [plain, ours], rounds=15)
    results.faster("distillation step, demo", "plain loop, autocast", found["autocast"], found["ours"], 2.5)


def loss(results: Results) -> None:
    """The mixed loss at 4,096 tokens."""
    kinds = ["unfused", "ours"]
    try:
        import liger_kernel  # noqa: F401

        kinds.append("liger")
    except ImportError:
        STDERR.print("loss: liger-kernel is not installed (pip install --no-deps liger-kernel); left out")
    found = results.time("loss, 4,096 tokens", [Arm(k, loss_step, {"kind": k, "count": 4096}) for k in kinds], rounds=5)
    results.faster("loss, forward and backward", "unfused", found["unfused"], found["ours"], 2.5)
    if "liger" in found:
        results.faster("loss, forward and backward", "Liger's", found["liger"], found["ours"], 1.0)


def loss_memory(results: Results) -> None:
    """Resident memory of the mixed loss beyond its inputs and the gradients that it returns."""
    extra = {
        kind: {n: extra_memory(Arm(kind, loss_step, {"kind": kind, "count": n})) - gradient_bytes(n) for n in counts}
        for kind, counts in (("chunked", (4096, 16384, 32768)), ("unfused", (2048, 4096)))
    }
    results.timings["extra bytes"] = extra
    ours, plain = extra["chunked"], extra["unfused"]
    # The unfused loss takes more than this machine has at 16,384 tokens; it grows by as much for each.
    at_16k = plain[4096] + (plain[4096] - plain[2048]) * (16384 - 4096) / 2048
    share = ours[16384] / at_16k
    results.add("extra memory of the loss, 16,384 tokens", "unfused, by line", share, "at most 1/20", share <= 1 / 20)
    growth = ours[32768] / ours[4096]
    results.add("the same, 32,768 tokens", "4,096 tokens", growth, "flat (1.25 x)", growth <= 1.25)


def switch_layer(results: Results) -> None:
    """A Switch layer of any number of experts against the dense FFN of one; transformers' at 128."""
    count = 8192
    for experts in (8, 32, 64, 128):
        kinds = ["dense", "ours", *(["transformers"] if experts == 128 else [])]
        arms = [Arm(k, ffn_step, {"kind": k, "experts": experts, "count": count}, count) for k in kinds]
        found = results.time(f"Switch layer, {experts} experts", arms, rounds=7)
        results.slower(f"Switch layer, {experts} experts", "dense FFN", found["dense"], found["ours"], 1.25)
        if "transformers" in found:
            results.faster("Switch layer, 128 experts", "transformers'", found["transformers"], found["ours"], 2.0)


def loader(results: Results) -> None:
    """Examples that the loader makes against those that the fastest step measured here takes."""
    for size, batch in (("demo", 16), ("base", 2)):
        arm = Arm("hard", our_step, {"size": size, "batch": batch, "labels": "hard"}, batch)
        step = results.time(f"loader, {size}", [arm], rounds=5 if size == "demo" else 1)["hard"]
        rate = loader_rate(LENGTHS[size][0], batch)
        results.timings[f"loader, {size}"]["examples_per_second"] = rate
        factor = rate / step.rate
        results.add(f"loader, {size}", "examples that the step takes", factor, "at least 10 x", factor >= 10)


def startup(results: Results) -> None:
    """Seconds until the command has answered."""
    help_ = answer_seconds("--help")
    results.add("switch-distill --help", "seconds", help_, "less than 0.5", help_ < 0.5)
    with tempfile.TemporaryDirectory() as directory:
        command = ("run", "smoke", "--workdir", directory)
        answer_seconds(*command, repeats=1)
        cached = answer_seconds(*command, repeats=3)
    results.add("a finished run again", "seconds", cached, "less than 3", cached < 3)


def compiled(results: Results) -> None:
    """What torch.compile makes of our step at the demo's size, once it has compiled."""
    settings = {"size": "demo", "batch": 16, "labels": "online"}
    arms = [
        Arm("eager", our_step, settings, repeats=20),
        Arm("compiled", our_step, {**settings, "compiled": True}, repeats=20),
    ]
    found = results.time("torch.compile, demo", arms, rounds=5)
    results.faster("compiled step, demo", "ours as it is", found["eager"], found["compiled"], 1.1)


ALL = (loss, loss_memory, switch_layer, demo_step, cached_labels, loader, startup, base_step)
PARTS = {part.__name__: part for part in (*ALL, compiled)}


def main(
    only: Annotated[str, typer.Option(help=f"Parts, by commas: {', '.join(PARTS)}.")] = ",".join(
        part.__name__ for part in ALL
    ),
    output: Annotated[Path, typer.Option(help="JSON; parts that are not measured now are kept.")] = Path(
        "work/benchmarks.json"
    ),
) -> None:
    """Measure, write JSON, print the table of all that the JSON holds."""
    if unknown := set(only.split(",")) - set(PARTS):
        raise typer.BadParameter(f"no such part: {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    output.parent.mkdir(parents=True, exist_ok=True)
    parts = json.loads(output.read_text())["parts"] if output.exists() else {}
    machine = {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    start = time.perf_counter()
    for name in only.split(","):
        results, began = Results(), time.perf_counter()
        PARTS[name](results)
        minutes = (time.perf_counter() - began) / 60
        parts[name] = {"rows": results.rows, "timings": results.timings, "machine": machine, "minutes": minutes}
        write_json(output, {"parts": parts})
    table = Table("measure", "against", "result", "target", "", box=box.SIMPLE_HEAD)
    for row in (row for name in PARTS if name in parts for row in parts[name]["rows"]):
        table.add_row(
            row["measure"], row["against"], _shown(row["value"]), row["target"], "yes" if row["met"] else "no"
        )
    Console(width=120).print(table)
    STDERR.print(f"{output}: {(time.perf_counter() - start) / 60:.0f} minutes", highlight=False)


def _shown(value: dict[str, float] | float) -> str:
    if isinstance(value, dict):
        return f"{value['median']:.2f} x [{value['min']:.2f}, {value['max']:.2f}]"
    return f"{value:.3g}"


if __name__ == "__main__":
    typer.run(main)
