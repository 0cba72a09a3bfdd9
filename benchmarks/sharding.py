"""The peak memory of a process in training: DDP, FSDP2 with one group for the model, and FSDP2 with a group per block.

    python -m benchmarks.sharding

It trains a T5 of 1.02 GB in float32, and then a Switch model of 1.4 GB, whose experts FSDP2 divides, for two steps on 2
and 4 gloo processes. It prints the resident memory of each process and the losses, which must be equal. With 4
processes the T5 takes 16 GB in each of the first two forms. It needs Linux.
"""

import multiprocessing
import os
import socket
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from accelerate import Accelerator
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from distill.config import ModelConfig, TrainingConfig
from distill.data.examples import Batch
from distill.models.build import build_dense
from distill.training import loop
from distill.training.divergence import NormWatch
from distill.training.machine import return_freed_memory
from distill.training.sharding import leave_process_group
from distill.training.step import micro_batch_indices, optimizer_step
from distill.training.train_modules import HardLabels, TrainModule
from teachers.build import build_teacher, count_undivided
from teachers.config import SwitchConfig
from teachers.train_module import HardLabelsAndLoadBalance

FORMS = ("DDP", "one group", "by block")
STEPS, BATCH, INPUTS, TARGETS, VOCABULARY = 2, 4, 16, 8, 32_128
WIDTHS = {"d_model": 768, "d_ff": 3072, "d_kv": 64, "num_heads": 12, "dropout": 0.0}
LARGE = {0: ModelConfig(num_layers=14, **WIDTHS), 16: ModelConfig(num_layers=2, sparse_every=1, **WIDTHS)}  # by experts
TINY = ModelConfig(d_model=16, d_ff=32, d_kv=8, num_heads=2, num_layers=2, dropout=0.0)
TRAINING = TrainingConfig(
    steps=STEPS, batch_size=BATCH, micro_batch_size=1, learning_rate=1e-2, warmup_steps=1, optimizer="adafactor"
)


class Measured(NamedTuple):
    """What one process has measured."""

    parameters: int
    before: int  # resident bytes, before the model is built
    start: int  # the most resident bytes before the first step
    peak: int  # the most resident bytes during the steps
    losses: list[float]  # of each step


def main(tiny: Annotated[bool, typer.Option(help="Train a tiny model, whose memory says nothing.")] = False) -> None:
    """Train both models in all forms, and compare."""
    equal = [compare(experts, tiny) for experts in LARGE]
    if not all(equal):
        raise typer.Exit(1)


def compare(experts: int, tiny: bool) -> bool:
    """Print the table of a T5, if ``experts`` is 0, or of a Switch model; returns whether all losses are equal."""
    shape, counts = (TINY, (2,)) if tiny else (LARGE[experts], (2, 4))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    for column in ("processes", "form", "before the model", "peak before the steps", "peak during the steps", "losses"):
        table.add_column(column, justify="right")
    curves = []
    for processes in counts:
        for form in ("DDP", "by block") if experts else FORMS:
            if experts and form == "DDP" and processes > 2:
                continue  # 22 GB
            found = run(form, processes, shape, experts)
            curves += [torch.tensor(one.losses) for one in found]
            before, start, peak = (
                " ".join(f"{size / 1e9:.2f}" for size in sizes) + " GB"
                for sizes in ([found[0].before], [one.start for one in found], [one.peak for one in found])
            )
            table.add_row(str(processes), form, before, start, peak, " ".join(f"{one:.5f}" for one in found[0].losses))
    print(f"{f'Switch, {experts} experts' if experts else 'T5'}, {found[0].parameters * 4 / 1e9:.2f} GB")
    Console(width=120).print(table, highlight=False)
    # Rounding may send a token to another expert, which changes the next losses of a Switch model more than rounding.
    bounds = {"atol": 0, "rtol": 1e-4} if experts else {"atol": 1e-4, "rtol": 0}
    equal = all(torch.allclose(curve, curves[0], **bounds) for curve in curves)
    print(f"the losses are {'equal' if equal else 'NOT equal'} up to rounding")
    return equal


def run(form: str, processes: int, shape: ModelConfig, experts: int) -> list[Measured]:
    """Train in one of FORMS in new processes; returns the measurements of each."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["distill.training.loop"])  # imported once
    with ProcessPoolExecutor(processes, context) as pool:
        return list(pool.map(partial(train, form, shape, experts, processes, port), range(processes)))


def train(form: str, shape: ModelConfig, experts: int, processes: int, port: int, rank: int) -> Measured:
    """Train as process ``rank``."""
    group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    group["OMP_NUM_THREADS"] = 1
    os.environ |= {name: str(value) for name, value in group.items()} | {"ACCELERATE_USE_FSDP": str(form != "DDP")}
    accelerator = loop.make_accelerator("float32")
    if form == "one group":
        loop.shard = shard_as_one_group
    before = _memory("VmRSS")
    share = {"process": rank, "processes": processes} if form == "by block" else {}
    objective = make_objective(shape, experts, **share)
    parameters = count_undivided(objective.model)
    trained = loop.TrainingLoop(objective, TRAINING, accelerator, Path(), loop.Hooks())
    return_freed_memory()
    start = _memory("VmHWM")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to VmRSS
    losses = [_step(trained, accelerator, step) for step in range(STEPS)]
    measured = Measured(parameters, before, start, _memory("VmHWM"), losses)
    leave_process_group()
    return measured


def make_objective(shape: ModelConfig, experts: int, **share: int) -> TrainModule:
    """A T5 without a teacher, or a Switch teacher, or the ``share`` of it of a process."""
    if not experts:
        return HardLabels(build_dense(shape, VOCABULARY, pad=0, eos=1, seed=0))
    teacher = build_teacher(shape, SwitchConfig(jitter=0.0), VOCABULARY, experts, pad=0, eos=1, seed=0, **share)
    return HardLabelsAndLoadBalance(teacher, load_balancing_weight=0.01)


def shard_as_one_group(objective: nn.Module, device: torch.device) -> nn.Module:
    """FSDP2 with all weights in one group."""
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    fully_shard(objective, mesh=mesh).set_force_sum_reduction_for_comms(True)
    return objective


def _step(trained: loop.TrainingLoop, accelerator: Accelerator, step: int) -> float:
    batches = []
    for [number] in micro_batch_indices(TRAINING, accelerator)(step):
        random = torch.Generator().manual_seed(number)
        ids = torch.randint(2, VOCABULARY, (1, INPUTS + TARGETS), generator=random)
        batches.append(Batch(ids[:, :INPUTS], ids[:, INPUTS:]))
    watch = NormWatch((), TRAINING.gradient_clip)
    sums, tokens = optimizer_step(trained.objective, trained.optimizer, batches, TRAINING, accelerator, watch)
    return float(sums["loss"] / tokens)


def _memory(field: str) -> int:
    """Bytes of resident memory of this process: VmRSS (now) or VmHWM (the most since the last reset)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


if __name__ == "__main__":
    typer.run(main)
