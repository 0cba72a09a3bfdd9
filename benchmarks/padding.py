"""Training steps on pairs of short texts of differing lengths, and on texts of equal length.

    python -m benchmarks.padding

A step runs forward and backward on one batch of each of eight lengths. Both candidates of a comparison get the same
shapes: in one the shorter texts of a batch are padded, in the other all texts have the length of the longest. The rate
counts tokens that are not padding.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.timing import Candidate, alternate, ratios
from distill.config import ModelConfig
from distill.data.examples import IGNORE_INDEX
from distill.models.build import build_dense
from distill.training.loop import make_accelerator
from distill.training.train_modules import HardLabels, TrainModule
from teachers.build import build_teacher
from teachers.config import SwitchConfig
from teachers.train_module import HardLabelsAndLoadBalance

SHAPE = {"d_model": 64, "d_ff": 32, "d_kv": 16, "num_heads": 4, "num_layers": 2, "sparse_every": 1}
VOCABULARY_SIZE, EXPERTS, BATCH = 1024, 32, 256
INPUT_LENGTHS, TARGET_LENGTHS = (6, 16), (3, 14)  # shortest and longest
POOL, LENGTHS = 64, 8  # batches that are sorted by length, and those of them that are measured
TARGET = 0.8  # of the rate without padding

Batches = list[tuple[torch.Tensor, torch.Tensor]]


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each candidate, in turns.")] = 9,
    precision: Annotated[str, typer.Option(help="auto, bfloat16 or float32.")] = "auto",
) -> None:
    """Print the rates with and without padding, and their ratio with its range over rounds."""
    table = Table("model", "without padding", "with padding", "ratio", "range", "target", box=box.SIMPLE_HEAD)
    for kind in ("dense", "Switch"):
        candidates = [
            Candidate(
                f"{kind}{', padded' * padded}",
                padded_step,
                {"kind": kind, "padded": padded, "precision": precision},
                work=counted(batches(padded)),
                repeats=3,
                warmup=2,
            )
            for padded in (False, True)
        ]
        full, padded = alternate(candidates, rounds).values()
        factor = ratios(full, padded)
        rates = [f"{timing.rate:,.0f}/s" for timing in (full, padded)]
        met = "met" if factor["median"] >= TARGET else "missed"
        spread = f"{factor['min']:.2f} to {factor['max']:.2f}"
        table.add_row(kind, *rates, f"{factor['median']:.2f}", spread, f"{TARGET:.2f}, {met}")
    share = 1 - counted(batches(True)) / counted(batches(False))
    table.title = f"Tokens per second, {torch.get_num_threads()} threads; {share:.1%} of the padded batches is padding"
    Console().print(table)


def batches(padded: bool) -> Batches:
    """Random inputs [BATCH, S] and labels [BATCH, T] of eight shapes, from a pool of pairs that is sorted by length."""
    generator = np.random.default_rng(0)
    lengths = np.stack(
        [generator.integers(low, high + 1, POOL * BATCH) for low, high in (INPUT_LENGTHS, TARGET_LENGTHS)]
    )
    lengths = lengths[:, np.lexsort(lengths[::-1])].reshape(2, POOL, BATCH)[:, :: POOL // LENGTHS]
    made = []
    for pair in lengths.swapaxes(0, 1):
        ids = []
        for length_B, padding in zip(pair, (0, IGNORE_INDEX), strict=True):
            one = generator.integers(2, VOCABULARY_SIZE, (BATCH, length_B.max()))
            if padded:
                one[np.arange(length_B.max()) >= length_B[:, None]] = padding
            ids.append(torch.from_numpy(one))
        made.append((ids[0], ids[1]))
    return made


def counted(made: Batches) -> int:
    """Tokens that are not padding."""
    return sum(int((inputs != 0).sum() + (labels != IGNORE_INDEX).sum()) for inputs, labels in made)


def padded_step(
    kind: Literal["dense", "Switch"], padded: bool, precision: Literal["auto", "bfloat16", "float32"]
) -> Callable[[], None]:
    """Make a step of training, without the update of the weights.

    Args:
        kind: "dense" (a T5), or "Switch" (every FFN is a Switch layer).
        padded: whether the batches have padding.
        precision: of the products.
    """
    accelerator = make_accelerator(precision)
    arguments = {"vocab_size": VOCABULARY_SIZE, "pad": 0, "eos": 1, "seed": 0}
    shape = ModelConfig(**SHAPE)
    objective: TrainModule
    if kind == "dense":
        objective = HardLabels(build_dense(shape, **arguments))
    else:
        teacher = build_teacher(shape, SwitchConfig(), num_experts=EXPERTS, **arguments)
        objective = HardLabelsAndLoadBalance(teacher, load_balancing_weight=0.01)
    objective = objective.to(accelerator.device).train()
    made = [(inputs.to(accelerator.device), labels.to(accelerator.device)) for inputs, labels in batches(padded)]

    def step() -> None:
        for inputs, labels in made:
            with accelerator.autocast():
                loss, _ = objective(inputs, labels)
            loss.backward()
        objective.zero_grad()

    return step


if __name__ == "__main__":
    typer.run(main)
