"""Small trainings for tests/test_processes.py, in its own process and in several that ``accelerate launch`` starts.

``accelerate launch ... -m tests.processes DIRECTORY PREPARED [--only KIND] [--kill-at STEP]`` runs all of them and
writes the observations of each process to DIRECTORY/RANK.json.
"""

import argparse
import gc
import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from distill.config import DataConfig, ModelConfig, TrainingConfig
from distill.data.examples import Examples
from distill.data.prepare import PreparedData, read_prepared
from distill.evaluation import evaluate
from distill.generation import generate
from distill.models.build import build_dense
from distill.training.divergence import TrainingDiverged
from distill.training.loop import Hooks, make_accelerator, train
from distill.training.sharding import leave_process_group
from distill.training.train_modules import HardAndSoftLabels, HardLabels
from teachers.build import build_teacher
from teachers.config import SwitchConfig
from teachers.train_module import HardLabelsAndLoadBalance

SHAPE = ModelConfig(d_model=16, d_ff=32, d_kv=8, num_heads=3, num_layers=2, dropout=0.1)
DATA = DataConfig(corpus="text:", input_length=32, test_examples=12)
TRAINING = TrainingConfig(
    steps=8, batch_size=8, micro_batch_size=2, learning_rate=5e-3, warmup_steps=2, log_every=1, checkpoint_every=3
)
OPTIMIZERS = {"teacher": "adamw", "baseline": "adafactor", "distill": "muon"}
EPOCH = 25  # examples; the 64 of a run are more than two epochs, and epochs end inside a micro-batch


def make_objective(kind: str, data: PreparedData):
    words = {"pad": data.special_tokens.pad, "eos": data.special_tokens.eos}
    dense = build_dense(SHAPE, data.vocab_size, **words, seed=0)
    if kind == "baseline":
        return HardLabels(dense)
    teacher = build_teacher(SHAPE, SwitchConfig(), data.vocab_size, 3, **words, seed=0)
    if kind == "teacher":
        return HardLabelsAndLoadBalance(teacher, load_balancing_weight=0.01)
    return HardAndSoftLabels(dense, teacher, hard_fraction=0.75, temperature=1.0)


def make_examples(data: PreparedData) -> Examples:
    examples = Examples(data, DATA, seed=0)
    examples.segments = EPOCH
    return examples


def identities(batch) -> list[str]:
    """An identity for each example, from its inputs and targets."""
    rows = zip(batch[0].tolist(), batch[1].tolist(), strict=True)
    return [hashlib.sha256(json.dumps(row).encode()).hexdigest()[:16] for row in rows]


def course(
    kind: str,
    data: PreparedData,
    directory: Path,
    accelerator: Accelerator,
    *,
    stop: int | None = None,
    diverge_at: int | None = None,
    die: tuple[int, BaseException | signal.Signals] | None = None,
) -> dict[str, Any]:
    """Train in ``directory``, or resume.

    Args:
        diverge_at: a step at which the first evaluation reports divergence, so that training restarts.
        die: a step, and the end of this process after it.

    Returns:
        Losses and identities of the examples of this process, by step; at the end, test losses, answers to the test
        inputs, and the SHA-256 of the weights.
    """
    objective, losses, seen, evaluated = make_objective(kind, data), {}, {}, []
    model, held_out = objective.model, Examples(data, DATA, seed=None)
    objective.register_forward_pre_hook(
        lambda module, batch: seen.setdefault(module.step + 1, []).extend(identities(batch))
    )

    def on_step(step, total, metrics):
        losses[step] = metrics["loss"]
        if die and step == die[0]:
            if isinstance(die[1], BaseException):
                raise die[1]
            (directory.parent / "killed").touch()
            os.kill(os.getpid(), die[1])

    def on_evaluation(step):
        evaluated.append(step)
        evaluate(model, held_out, batch_size=5, accelerator=accelerator)
        if evaluated.count(diverge_at) == len(evaluated) == 1:
            raise TrainingDiverged("no good")

    changes = {"optimizer": OPTIMIZERS[kind]}
    if diverge_at:
        changes |= {"on_divergence": "restart", "evaluate_every": diverge_at}
    try:
        train(
            objective,
            make_examples(data),
            TRAINING.model_copy(update=changes),
            accelerator=accelerator,
            directory=directory,
            seed=0,
            stop=stop,
            hooks=Hooks(on_step=on_step, evaluate=on_evaluation),
        )
    except KeyboardInterrupt:
        return {"losses": losses, "seen": seen}
    _, test = evaluate(model, held_out, batch_size=5, accelerator=accelerator)
    inputs = held_out.batch(range(DATA.test_examples))[0]
    answers = generate(model, list(inputs), max_length=6, batch_size=5, accelerator=accelerator)
    weights = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()
    return {"losses": losses, "seen": seen, "test": test.tolist(), "answers": answers, "weights": weights}


def courses(data: PreparedData, directory: Path, accelerator: Accelerator) -> dict[str, Any]:
    """All runs that are compared: uninterrupted, repeated, stopped and resumed, restarted after divergence."""
    results: dict[str, Any] = {}
    for kind in OPTIMIZERS:
        results[kind] = course(kind, data, directory / kind, accelerator)
        results[f"{kind} again"] = course(kind, data, directory / f"{kind}-again", accelerator)
    course("teacher", data, directory / "resumed", accelerator, stop=3)
    results["teacher resumed"] = course("teacher", data, directory / "resumed", accelerator)
    results["baseline diverged"] = course("baseline", data, directory / "diverged", accelerator, diverge_at=4)
    return results


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("--only", choices=OPTIMIZERS)
    parser.add_argument("--kill-at", type=int)
    asked = parser.parse_args()
    gc.freeze()  # as in conftest.py
    accelerator, data = make_accelerator("float32"), read_prepared(asked.prepared)
    rank, changed = accelerator.process_index, []
    watched = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink"}

    def audit(event: str, arguments: tuple) -> None:
        reads = event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if event in watched and not reads and str(arguments[0]).startswith(str(asked.directory)):
            changed.append(f"{event} {arguments[0]}")

    sys.addaudithook(audit)
    if asked.only:
        die = (asked.kill_at, signal.SIGKILL) if asked.kill_at and rank else None
        results = {asked.only: course(asked.only, data, asked.directory / asked.only, accelerator, die=die)}
    else:
        results = courses(data, asked.directory, accelerator)
    results |= {"changed": list(changed), "processes": accelerator.num_processes}
    (asked.directory / f"{rank}.json").write_text(json.dumps(results))
    leave_process_group()


if __name__ == "__main__":
    main()
