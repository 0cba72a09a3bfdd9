"""Greedy answers of this project, and of ``generate`` of plain transformers on the same weights.

    python -m benchmarks.generation

A student (T5) and a teacher (every FFN is a Switch layer of 32 experts) learn to count down from the first token of an
input, so that answers end after 3 to 23 tokens. The plain loop takes batches in the order of the data, padded and with
their attention mask. Both compute in float32, and their answers must be equal; the third candidate is this project's in
bfloat16. Models of T5-Base's shape have random weights, so all their answers have 24 tokens.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel, SwitchTransformersForConditionalGeneration, T5ForConditionalGeneration
from transformers.utils.logging import disable_progress_bar

from benchmarks.timing import Candidate, alternate, ratios
from distill.config import ModelConfig
from distill.data.examples import IGNORE_INDEX
from distill.generation import generate
from distill.models.build import build_dense, place
from distill.models.save import save_t5
from distill.training.loop import make_accelerator
from distill.training.train_modules import HardLabels, TrainModule
from students.load import load_dense
from teachers import load_teacher, save_teacher
from teachers.build import build_teacher
from teachers.config import SwitchConfig
from teachers.train_module import HardLabelsAndLoadBalance

Kind = Literal["student", "teacher"]
Ids = list[list[int]]

SHAPES: dict[str, dict[str, Any]] = {
    "small": {"d_model": 64, "d_ff": 32, "d_kv": 16, "num_heads": 4, "num_layers": 2, "sparse_every": 1},
    "middle": {"d_model": 256, "d_ff": 128, "d_kv": 64, "num_heads": 4, "num_layers": 4, "sparse_every": 1},
    "base": {"d_model": 768, "d_ff": 3072, "d_kv": 64, "num_heads": 12, "num_layers": 12},
}
VOCABULARY_SIZE = {"small": 1024, "middle": 1024, "base": 32_128}
EXPERTS = {"small": 32, "middle": 32, "base": 8}
EXAMPLES = {"small": 1024, "middle": 512, "base": 32}
BATCH = {"small": 64, "middle": 64, "base": 16}
STEPS = {"small": 300, "middle": 60, "base": 0}  # of training
MAX_LENGTH = 24
TARGET = 3.0  # times the rate of the plain loop
_FIRST = 10  # the token that stands for 0


def main(
    size: Annotated[list[str] | None, typer.Option(help="small, middle or base; may be repeated.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each candidate, in turns.")] = 7,
) -> None:
    """Print the rates, their ratio with its range over rounds, and whether the answers are equal."""
    disable_progress_bar()
    columns = ("model", "transformers", "ours", "ratio", "range", "target", "equal answers", "ours, bfloat16")
    table = Table(*columns, box=box.SIMPLE_HEAD)
    table.title = f"Answers per second in float32, {torch.get_num_threads()} threads"
    for one in size or list(SHAPES):
        for kind in ("student", "teacher"):
            with tempfile.TemporaryDirectory() as directory:
                save_trained(kind, one, Path(directory))
                settings: dict[str, Any] = {"kind": kind, "size": one, "directory": directory}
                repeats = 1 if one == "base" else 2
                candidates = [
                    Candidate("transformers", plain_answers, settings, EXAMPLES[one], repeats),
                    Candidate("ours", our_answers, settings, EXAMPLES[one], repeats),
                    Candidate("bfloat16", our_answers, {**settings, "precision": "bfloat16"}, EXAMPLES[one], repeats),
                ]
                plain, ours, bfloat16 = alternate(candidates, rounds).values()
                pairs = zip(plain_answers(**settings)(), our_answers(**settings)(), strict=True)
                same = np.mean([one == other for one, other in pairs])
            factor = ratios(plain, ours)
            met = "met" if factor["median"] >= TARGET else "missed"
            rates = [f"{timing.rate:,.4g}" for timing in (plain, ours, bfloat16)]
            spread = f"{factor['min']:.2f} to {factor['max']:.2f}"
            numbers = [f"{factor['median']:.2f}", spread, f"{TARGET:g}, {met}", f"{same:.2%}"]
            table.add_row(f"{one} {kind}", *rates[:2], *numbers, rates[2])
    Console().print(table)


def examples(count: int, vocabulary_size: int, seed: int) -> tuple[Ids, Ids]:
    """Inputs of 5 to 16 tokens and their targets, both with eos.

    The first token of an input is a number, 0.75 to 1.5 times the length of the input. The target counts down from it.
    """
    generator = np.random.default_rng(seed)
    inputs, targets = [], []
    for length in generator.integers(5, 17, count).tolist():
        number = int(generator.integers(int(0.75 * length), int(1.5 * length)))
        others = generator.integers(_FIRST + MAX_LENGTH, vocabulary_size, length - 2).tolist()
        inputs.append([_FIRST + number, *others, 1])
        targets.append([*range(_FIRST + number, _FIRST, -1), 1])
    return inputs, targets


def padded(rows: Ids, padding: int) -> torch.Tensor:
    """[rows, length of the longest]"""
    longest = max(map(len, rows))
    return torch.tensor([row + [padding] * (longest - len(row)) for row in rows])


def save_trained(kind: Kind, size: str, directory: Path) -> None:
    """Train a model for a minute or less and save it for transformers."""
    shape, vocabulary_size = ModelConfig(**SHAPES[size]), VOCABULARY_SIZE[size]
    arguments: dict[str, Any] = {"vocab_size": vocabulary_size, "pad": 0, "eos": 1, "seed": 0}
    objective: TrainModule
    if kind == "student":
        objective = HardLabels(build_dense(shape, **arguments))
    else:
        teacher = build_teacher(shape, SwitchConfig(), num_experts=EXPERTS[size], **arguments)
        objective = HardLabelsAndLoadBalance(teacher, load_balancing_weight=0.01)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=5e-3 if size == "small" else 2e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, max(STEPS[size], 1))
    for step in range(STEPS[size]):
        inputs, targets = examples(64, vocabulary_size, 1 + step)
        loss, _ = objective(padded(inputs, 0), padded(targets, IGNORE_INDEX))
        (loss / sum(map(len, targets))).backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    save: Any = save_t5 if kind == "student" else save_teacher
    save(objective.model, directory)


def our_answers(
    kind: Kind, size: str, directory: str, precision: Literal["float32", "bfloat16"] = "float32"
) -> Callable[[], Ids]:
    """Make a step: the answers of this project to all examples."""
    accelerator = make_accelerator(precision)
    model: PreTrainedModel = load_dense(directory, "student") if kind == "student" else load_teacher(directory)
    place(model, accelerator.device)
    inputs, _ = examples(EXAMPLES[size], VOCABULARY_SIZE[size], 0)

    def step() -> Ids:
        with accelerator.autocast():
            return generate(model, inputs, max_length=MAX_LENGTH, batch_size=BATCH[size])

    return step


def plain_answers(kind: Kind, size: str, directory: str) -> Callable[[], Ids]:
    """Make a step: the answers of plain transformers to all examples."""
    known: Any = T5ForConditionalGeneration if kind == "student" else SwitchTransformersForConditionalGeneration
    model = known.from_pretrained(directory).eval()
    inputs, _ = examples(EXAMPLES[size], VOCABULARY_SIZE[size], 0)

    def step() -> Ids:
        answers: Ids = []
        for start in range(0, len(inputs), BATCH[size]):
            ids = padded(inputs[start : start + BATCH[size]], 0)
            rows = model.generate(
                input_ids=ids, attention_mask=(ids != 0).long(), max_new_tokens=MAX_LENGTH, num_beams=1, do_sample=False
            )
            for row in rows[:, 1:].tolist():
                ended = row[: row.index(1)] if 1 in row else row
                answers.append([token for token in ended if token != 0])
        return answers

    return step


if __name__ == "__main__":
    typer.run(main)
