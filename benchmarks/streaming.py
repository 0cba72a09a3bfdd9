"""Labels of a teacher that is larger than its memory, layer by layer, and of the same teacher in memory.

    python -m benchmarks.streaming --memory 1.05GB --examples 1024

It writes a synthetic checkpoint of several files, makes the same soft labels twice, each time in a process of its own,
and prints times, bytes read and peak memory. The labels must be the same bytes. It needs Linux.
"""

import math
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from benchmarks.checkpoints import RandomExamples, Size, write_checkpoint
from distill.config import LabelsConfig
from distill.data.make_labels import make_labels
from distill.models.layerwise import ByLayer
from distill.training.loop import make_accelerator
from distill.training.precision import resolve_precision
from teachers.config import TeacherConfig
from teachers.load import open_teacher
from teachers.needs import BatchShape
from teachers.streaming import RunningTeacher, run_teacher

ENOUGH = "1TB"  # for any teacher of this benchmark


class Task(NamedTuple):
    """The examples to label."""

    examples: int
    batch: BatchShape


TINY = Size(d_model=16, d_ff=32, experts=2, blocks=2, vocabulary=64), Task(2, BatchShape(2, 8, 4))


def main(
    memory: Annotated[str, typer.Option(help="Limit of the memory, as in teacher.memory.")] = "1.05GB",
    examples: Annotated[int, typer.Option(min=1, help="Number of labelled examples.")] = 1024,
    experts: Annotated[int, typer.Option(min=2, help="Experts in each of the 12 Switch layers, 2 MB each.")] = 128,
    directory: Annotated[Path | None, typer.Option(help="Of all files; they are deleted.")] = None,
) -> None:
    """Label with the limit and without one, and compare."""
    size = Size(d_model=256, d_ff=2048, experts=experts, blocks=12, vocabulary=4096)
    with tempfile.TemporaryDirectory(dir=directory) as name:
        place = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(place / "cache")  # what a check of the files has found is kept there
        write_checkpoint(place / "teacher", size)
        task = Task(examples, BatchShape(examples=16, inputs=256, targets=64))
        found = {limit: in_new_process(place, limit, size, task) for limit in (memory, ENOUGH)}
        files = [{path.name: path.read_bytes() for path in (place / limit).iterdir()} for limit in found]
        Console().print(_table(found), highlight=False)
        print(f"the labels are {'the same bytes' if files[0] == files[1] else 'NOT the same bytes'}")
        if files[0] != files[1]:
            raise typer.Exit(1)


def label(place: Path, limit: str, size: Size, task: Task) -> dict[str, Any]:
    """Make labels, and measure seconds, bytes read, and the peak of the memory above that before.

    Args:
        place: a directory with the checkpoint ``teacher``. The labels are written to a directory with the name of the
            limit.
        limit: of the memory, as in ``teacher.memory``.
        size: of the teacher.
        task: the examples.
    """
    write_checkpoint(place / f"tiny {limit}" / "teacher", TINY[0])
    _run(place / f"tiny {limit}", ENOUGH, *TINY)  # loads libraries
    base, began = _memory("VmRSS"), time.perf_counter()
    teacher, experts = _run(place, limit, size, task)
    slices = 0
    if isinstance(teacher.forward, ByLayer):
        batches = max(teacher.forward.slice_bytes // task.batch.state_bytes(size.d_model), 1)
        slices = math.ceil(math.ceil(task.examples / task.batch.examples) / batches)
    return {
        "sentence": teacher.sentence,
        "seconds": time.perf_counter() - began,
        "experts": experts,
        "read": teacher.streamed.bytes_read if teacher.streamed else 0,
        "slices": slices,
        "peak": _memory("VmHWM") - base,
    }


def _run(place: Path, limit: str, size: Size, task: Task) -> tuple[RunningTeacher, int]:
    """Make labels. Returns the teacher, and the bytes of all experts in its files."""
    precision = resolve_precision("auto")
    accelerator, stored = make_accelerator(precision), open_teacher(str(place / "teacher"))
    count, inputs, targets = task.batch
    teacher = run_teacher(
        stored,
        TeacherConfig(checkpoints={"e2": "here"}, evaluation_batch_size=count, memory=limit),
        compute_dtype={"bfloat16": torch.bfloat16, "float32": torch.float32}[precision],
        device=accelerator.device,
        lengths=(inputs, targets),
        directory=place,
    )
    make_labels(
        teacher.model,
        RandomExamples(size.vocabulary, inputs, targets),
        LabelsConfig(),
        place / limit,
        count=task.examples,
        temperature=1.0,
        batch_size=count,
        accelerator=accelerator,
        origin={},
        progress=place / f"{limit}.progress" / "progress.json",
        forward=teacher.forward,
    )
    return teacher, sum(one.extent for name, one in stored.reader.tensors.items() if ".experts." in name)


def in_new_process(*arguments: Any) -> dict[str, Any]:
    """The result of ``label`` in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(label, *arguments).result()


def _memory(field: str) -> int:
    """Bytes of resident memory of this process: VmRSS (now) or VmHWM (the most until now)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _table(found: dict[str, dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    for column in (
        "limit",
        "seconds",
        "experts on disk",
        "slices",
        "bytes read",
        "reads per\nexpert and slice",
        "peak",
    ):
        table.add_column(column, justify="right")
    for limit, one in found.items():
        if one["sentence"]:
            print(one["sentence"])
        reads = f"{one['read'] / one['experts'] / one['slices']:.3f}" if one["slices"] else ""
        cells = [decimal(one["experts"]), str(one["slices"] or ""), decimal(one["read"]) if one["read"] else "", reads]
        table.add_row(limit, f"{one['seconds']:.1f}", *cells, f"{one['peak'] / 1e6:,.0f} MB")
    return table


if __name__ == "__main__":
    typer.run(main)
