"""Correctness and speed on one GPU: ``python benchmarks/gpu.py``. It takes less than six minutes and no network.

Outputs and gradients are first compared with those of the CPU. Then the distillation step, the Switch layer, the loss
and the labels are timed. A part that fails, that does not fit in memory or for which no time is left does not stop the
others. ``--tiny`` runs all of it at small sizes, also on a CPU, so that a mistake costs no time of a GPU.
"""

import sys
import time
from pathlib import Path
from typing import Annotated, Any

if __package__ in (None, ""):  # started as a file: its directory is on the path, and the packages are beside it
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
import transformers
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.gpu_checks import checks
from benchmarks.gpu_parts import FULL, TINY, Case, cases, measure, release_memory
from distill.io.files import write_json

STDERR = Console(stderr=True)
_LIMIT = 300.0  # seconds; no case starts after them
# Floating-point operations per second of dense bfloat16 products, from the data sheets, by the name that torch gives.
_PEAKS = {
    **dict.fromkeys(("NVIDIA H200", "NVIDIA H100 80GB HBM3"), 989e12),
    **dict.fromkeys(("NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM4-40GB", "NVIDIA A100 80GB PCIe"), 312e12),
}


def main(
    tiny: Annotated[bool, typer.Option("--tiny", help="Small sizes, which also run on a CPU, in seconds.")] = False,
    output: Annotated[Path, typer.Option(help="JSON file. It is written again after every part.")] = Path(
        "work/gpu.json"
    ),
) -> None:
    """Compare the results of a GPU with those of the CPU, time the parts, print a table and write a JSON file.

    The exit code is 1 if a comparison or a part failed, and 2 if there is no GPU.
    """
    start = time.perf_counter()
    if not tiny and not torch.cuda.is_available():
        print("There is no CUDA device; run this on a machine with a GPU, or add --tiny.", file=sys.stderr)
        raise typer.Exit(2)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = TINY if tiny else FULL
    output.parent.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"machine": _machine(), "sizes": sizes._asdict(), "checks": [], "timings": []}
    for check in checks(device):
        results["checks"].append(check.facts())
        write_json(output, results)
    for case in cases(sizes, device):
        elapsed = time.perf_counter() - start
        STDERR.print(f"{elapsed:4.0f} s  {case.part}: {case.name}", highlight=False)
        row = _row(case, sizes.repeats, device) if elapsed < _LIMIT else _facts(case, "skipped: no time left")
        results["timings"].append(row)
        write_json(output, results)
    results["seconds"] = time.perf_counter() - start
    write_json(output, results)
    console = Console(width=150)
    console.print(_check_table(results["checks"]), _timing_table(results), highlight=False)
    if not all(check["passed"] for check in results["checks"]) or any(
        row["note"].startswith("failed") for row in results["timings"]
    ):
        raise typer.Exit(1)


def _machine() -> dict[str, str]:
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "cuda": str(torch.version.cuda)}
    return {"device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU", **versions}


def _row(case: Case, repeats: int, device: torch.device) -> dict[str, Any]:
    """Time a case. An error becomes a note."""
    try:
        release_memory()  # of the case before, which may have failed
        timing, peak = measure(case, repeats, device)
    except torch.OutOfMemoryError:
        return _facts(case, "out of memory")
    except Exception as error:  # the other parts must still run
        return _facts(case, f"failed: {type(error).__name__}: {error}"[:300])
    seconds = {"median": timing.median, "min": min(timing.seconds), "max": max(timing.seconds)}
    return _facts(case, "") | {
        "seconds": seconds,
        "repeats": len(timing.seconds),
        "rate": timing.rate,
        "mfu": _utilisation(case, timing.median),
        "peak_bytes": peak,
    }


def _facts(case: Case, note: str) -> dict[str, Any]:
    """The row of a case that was not timed."""
    return {
        "part": case.part,
        "case": case.name,
        "seconds": None,
        "repeats": 0,
        "rate": None,  # units per second
        "unit": case.unit,
        "mfu": None,
        "peak_bytes": None,
        "note": note,
    }


def _utilisation(case: Case, seconds: float) -> float | str | None:
    """Model FLOP utilisation, a fraction of the card's peak; "unknown" for a card whose peak is not listed."""
    if case.operations is None:
        return None
    peak = _PEAKS.get(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    return case.operations / seconds / peak if peak else "unknown"


def _check_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        *("against float32 on the CPU", "precision", "largest relative difference", "tolerance", "tensor", "result"),
        box=box.SIMPLE_HEAD,
    )
    for row in rows:
        difference = "not known" if row["difference"] is None else f"{row['difference']:.1e}"
        result = "passed" if row["passed"] else "FAILED"
        table.add_row(row["name"], row["precision"], difference, f"{row['tolerance']:.2g}", row["tensor"], result)
    return table


def _timing_table(results: dict[str, Any]) -> Table:
    machine = results["machine"]
    table = Table(
        *("part", "case", "ms, median [lowest, highest]", "rate", "x first", "MFU", "peak GB", "note"),
        title=f"{machine['device']}, torch {machine['torch']}, transformers {machine['transformers']}",
        caption=f"{results['seconds']:.0f} s. 'x first': the rate as a multiple of the first case of the part.",
        box=box.SIMPLE_HEAD,
    )
    firsts: dict[str, float | None] = {}
    for row in results["timings"]:
        first = firsts.setdefault(row["part"], row["rate"])
        if row["seconds"] is None:
            table.add_row(row["part"], row["case"], "", "", "", "", "", row["note"])
            continue
        low, median, high = (f"{row['seconds'][name] * 1e3:,.3g}" for name in ("min", "median", "max"))
        factor = f"{row['rate'] / first:.2f}" if first else ""
        mfu = "" if row["mfu"] is None else row["mfu"] if isinstance(row["mfu"], str) else f"{row['mfu']:.1%}"
        peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e9:.2f}"
        rate = f"{row['rate']:,.4g} {row['unit']}/s"
        table.add_row(row["part"], row["case"], f"{median} [{low}, {high}]", rate, factor, mfu, peak, row["note"])
    return table


if __name__ == "__main__":
    typer.run(main)
