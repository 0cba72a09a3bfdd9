"""The parity check of every export: its runtime, in a new process, against the student on held-out examples."""

import json
import math
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from distill.errors import ExpectedError
from distill.module_command import module_command
from students.export.parity_examples import ParityExamples
from students.export.plain_t5 import PlainT5
from students.runtime.batches import pad
from students.runtime.hf_runner import HfRunner

T = TypeVar("T")

BATCH_SIZE = 8


class ParityFailure(ExpectedError, RuntimeError):
    """An export cannot be run, or differs too much from its student."""


class Tolerance(NamedTuple):
    """The largest allowed differences between an export and its student, in nats."""

    mean: float  # mean difference of the log-probabilities of the tokens of the student's answers
    max: float  # largest difference of these log-probabilities
    quality: float  # difference of negative log perplexity on the held-out targets

    @property
    def gap(self) -> float:
        """The largest gap between the student's two best tokens at which an answer may differ, in nats.

        The log-probability of each of the two may differ by ``max``.
        """
        return 2 * self.max


# float32 runtimes differ by rounding alone, about 1e-5. For int8, several times the differences of trained students.
TOLERANCES = {"float32": Tolerance(2e-5, 1e-4, 1e-5), "int8": Tolerance(2e-2, 1.5e-1, 1e-2)}


@dataclass(frozen=True)
class Reference:
    """The student's answers and scores on the examples. A score is the log-probability of a token, in nats."""

    target_scores: list[list[float]]  # of each token of each target
    answers: list[list[int]]  # greedy
    answer_scores: list[list[float]]  # of each token of each answer
    gaps: list[list[float]]  # at each token of each answer, the score of the best token minus that of the second best


@dataclass(frozen=True)
class Parity:
    """The differences between an export and its student, in nats."""

    tokens: int  # number of tokens of the held-out targets
    log_probability_difference_mean: float  # absolute differences on the tokens of the student's answers
    log_probability_difference_max: float
    quality_difference: float  # negative log perplexity on the held-out targets, the export's minus the student's
    greedy_agreement: float  # fraction of equal answers
    greedy_gap: float  # largest gap in ``Reference.gaps`` at the first different token of an answer

    def failures(self, tolerance: Tolerance) -> list[str]:
        """A phrase for each figure that exceeds ``tolerance`` or is NaN."""
        checks = (
            ("mean difference of log-probabilities", self.log_probability_difference_mean, tolerance.mean),
            ("largest difference of log-probabilities", self.log_probability_difference_max, tolerance.max),
            ("difference of quality", abs(self.quality_difference), tolerance.quality),
            ("gap at a different greedy token", self.greedy_gap, tolerance.gap),
        )
        return [f"{name} {found:.2g} nats (allowed {most:.2g})" for name, found, most in checks if not found <= most]


@torch.inference_mode()
def student_reference(directory: Path, examples: ParityExamples) -> Reference:
    """Compute the reference with ``generate`` and the forward pass of transformers, in float32.

    Raises:
        UserError: ``directory`` holds no dense T5.
    """
    runner = HfRunner(directory)
    target_scores, answers, answer_scores, gaps = [], [], [], []
    for start in range(0, len(examples.inputs), BATCH_SIZE):
        rows = slice(start, start + BATCH_SIZE)
        inputs = examples.inputs[rows]
        target_scores += runner.score(inputs, examples.targets[rows])
        batch_answers = runner.generate(inputs, examples.max_tokens[rows])
        answers += batch_answers
        answer_scores += runner.score(inputs, batch_answers)
        ids, mask = (torch.from_numpy(array) for array in pad(inputs, runner.model.config.pad_token_id))
        answer_ids = torch.from_numpy(pad(batch_answers, runner.model.config.pad_token_id)[0])
        start_ids = torch.full((len(answer_ids), 1), runner.model.config.decoder_start_token_id)
        logits = runner.model(
            input_ids=ids, attention_mask=mask, decoder_input_ids=torch.cat([start_ids, answer_ids[:, :-1]], dim=1)
        ).logits
        best = logits.log_softmax(-1).topk(2).values
        batch_gaps = (best[..., 0] - best[..., 1]).tolist()
        gaps += [row[: len(answer)] for row, answer in zip(batch_gaps, batch_answers, strict=True)]
    return Reference(target_scores, answers, answer_scores, gaps)


def run_export(directory: Path, examples: ParityExamples, answers: list[list[int]]) -> dict[str, Any]:
    """Run an export on the examples, in a new process that imports only the export's runtime.

    Args:
        directory: the export.
        answers: the student's answers, whose tokens are scored too.

    Returns:
        ``target_scores``, ``answers`` and ``answer_scores`` as in ``Reference``; ``compute_type``; and ``versions`` of
        the imported libraries.

    Raises:
        ParityFailure: the runtime cannot load the export, or fails on the examples.
    """
    with tempfile.TemporaryDirectory() as tmp_dir:
        request, reply = Path(tmp_dir) / "request.json", Path(tmp_dir) / "reply.json"
        request.write_text(json.dumps({**examples._asdict(), "answers": answers, "batch_size": BATCH_SIZE}))
        done = subprocess.run(
            module_command("students.runtime", str(directory), str(request), str(reply)),
            env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise ParityFailure(f"the export cannot be run by its own runtime: {last}")
        return json.loads(reply.read_text())


def compare_plain_t5(directory: Path, examples: ParityExamples, reference: Reference) -> Parity:
    """Compare ``PlainT5`` on an ``hf`` export with the student, on about 4 examples from the longest to the shortest.

    ``PlainT5`` scores the targets and the student's answers. It does not generate.

    Raises:
        ParityFailure: ``PlainT5`` cannot read the export.
    """
    number_of_examples = len(examples.inputs)
    by_length = sorted(range(number_of_examples), key=lambda number: len(examples.inputs[number]))
    chosen = by_length[:: -max(number_of_examples // 3, 1)]

    def select(rows: list[T]) -> list[T]:
        return [rows[number] for number in chosen]

    inputs, answers = select(examples.inputs), select(reference.answers)
    chosen_reference = Reference(
        select(reference.target_scores), answers, select(reference.answer_scores), select(reference.gaps)
    )
    try:
        reader = PlainT5(directory)
        targets = reader.score(inputs, select(examples.targets))
        reply = {"target_scores": targets, "answers": answers, "answer_scores": reader.score(inputs, answers)}
    except Exception as error:  # any kind of error means that the files are not those of a documented T5
        cause = f"{type(error).__name__} {error}"
        raise ParityFailure(f"the export cannot be read without transformers: {cause}; nothing was kept") from error
    return compare(chosen_reference, reply)


def compare(reference: Reference, reply: dict[str, Any]) -> Parity:
    """The differences between the reply of an export (see ``run_export``) and the student's reference."""
    difference = np.abs(_flat(reply["answer_scores"]) - _flat(reference.answer_scores))
    quality = _flat(reply["target_scores"]).mean()
    gaps = []
    for export_answer, answer, row in zip(reply["answers"], reference.answers, reference.gaps, strict=True):
        if export_answer != answer:
            # If one answer is a prefix of the other, no token differs and no gap explains the difference.
            first = next((n for n, (a, b) in enumerate(zip(export_answer, answer, strict=False)) if a != b), None)
            gaps.append(math.inf if first is None else row[first])
    return Parity(
        tokens=len(_flat(reference.target_scores)),
        log_probability_difference_mean=float(difference.mean()),
        log_probability_difference_max=float(difference.max()),
        quality_difference=float(quality - _flat(reference.target_scores).mean()),
        greedy_agreement=1 - len(gaps) / len(reply["answers"]),
        greedy_gap=max(gaps, default=0.0),
    )


def check_parity(parity: Parity, precision: str, description: str) -> None:
    """Raise a ParityFailure if the differences exceed the tolerance of ``precision``.

    Args:
        description: the beginning of the message.
    """
    if failures := parity.failures(tolerance_of(precision)):
        cure = "" if precision == "float32" else "; choose another format, or --precision float32"
        raise ParityFailure(f"{description}: {'; '.join(failures)}; nothing was kept{cure}")


def _flat(rows: list[list[float]]) -> np.ndarray:
    return np.concatenate([np.asarray(row, dtype=float) for row in rows])


def tolerance_of(precision: str) -> Tolerance:
    """The tolerance of an export's precision; all int8 precisions share one."""
    return TOLERANCES["float32" if precision == "float32" else "int8"]
