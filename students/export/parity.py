"""The gate of every export: its own runtime, in a fresh process, against the student, on real held-out text."""

import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer

from distill.errors import ExpectedError, UserError
from distill.span_corruption import corrupt_spans
from distill.special_tokens import SpecialTokens
from students.export.plain_t5 import PlainT5
from students.runtime import decode, encode
from students.runtime.batches import pad
from students.runtime.hf_runner import HfRunner

EXAMPLES = 64
BATCH_SIZE = 8
MAX_TOKENS = 48
SHORTEST, LONGEST = 4, 144  # raw tokens of an example


class ParityFailure(ExpectedError, RuntimeError):
    """An export answers too differently from the student that it was made of."""


class Tolerance(NamedTuple):
    """The most by which an export may differ, in nats."""

    mean: float  # of the log-probabilities of the tokens of the student's own answers, on average
    max: float  # and for any one of them
    quality: float  # of negative log perplexity on the held-out targets

    @property
    def gap(self) -> float:
        """Between the student's two best words where an answer may go another way: each may move by ``max``."""
        return 2 * self.max


# float32 runtimes differ by rounding alone, about 1e-5; int8 by several times what was seen of it on trained students.
TOLERANCES = {"float32": Tolerance(2e-5, 1e-4, 1e-5), "int8": Tolerance(2e-2, 1.5e-1, 1e-2)}


class Examples(NamedTuple):
    """Ragged ids: inputs as their text is read, targets, and the most tokens to generate for each."""

    inputs: list[list[int]]
    targets: list[list[int]]
    max_tokens: list[int]


@dataclass(frozen=True)
class Reference:
    """What the student makes of the examples; log-probabilities in nats."""

    target_scores: list[list[float]]  # of each token of each target
    answers: list[list[int]]
    answer_scores: list[list[float]]  # of each token of its own answers
    gaps: list[list[float]]  # and of the best word at each of them minus the second best


@dataclass(frozen=True)
class Parity:
    """By how much an export differs from the student; log-probabilities in nats."""

    tokens: int  # of the held-out targets
    log_probability_difference_mean: float  # of the tokens of the student's answers
    log_probability_difference_max: float
    quality_difference: float  # negative log perplexity on the held-out targets, the export's minus the student's
    greedy_agreement: float  # fraction of answers that are equal
    greedy_gap: float  # the largest gap of the student's at which an answer went another way

    def failures(self, tolerance: Tolerance) -> list[str]:
        """What is beyond ``tolerance``, in words."""
        checks = (
            ("mean difference of log-probabilities", self.log_probability_difference_mean, tolerance.mean),
            ("largest difference of log-probabilities", self.log_probability_difference_max, tolerance.max),
            ("difference of quality", abs(self.quality_difference), tolerance.quality),
            ("gap at a different greedy word", self.greedy_gap, tolerance.gap),
        )
        return [f"{name} {found:.2g} nats (allowed {most:.2g})" for name, found, most in checks if not found <= most]


def make_examples(tokens: np.ndarray, words: SpecialTokens, tokenizer: Tokenizer) -> Examples:
    """Span corruption of evenly spread pieces of ``tokens`` [N], of SHORTEST to LONGEST tokens (fewer if need be).

    Raises:
        UserError: there are too few tokens for pieces that say anything.
    """
    longest = min(LONGEST, len(tokens) // EXAMPLES)
    if longest < 4 * SHORTEST:
        needed = EXAMPLES * 4 * SHORTEST
        raise UserError(f"the text to compare on has {len(tokens)} tokens, and {needed} are needed; use more of it")
    generator = np.random.default_rng(0)
    lengths = np.linspace(SHORTEST, longest, EXAMPLES).astype(int)
    generator.shuffle(lengths)  # so that every batch is ragged
    inputs, targets = [], []
    for number, length in enumerate(lengths):
        start = number * len(tokens) // EXAMPLES
        corrupted, target = corrupt_spans(
            tokens[start : start + length], generator, sentinel_start=words.sentinel_start, eos=words.eos
        )
        inputs.append(encode(tokenizer, decode(tokenizer, corrupted.tolist())))
        targets.append(target.tolist())
    inputs[0] = encode(tokenizer, decode(tokenizer, inputs[0][:1]))  # the shortest that a text can be
    return Examples(inputs, targets, [MAX_TOKENS - number % 8 for number in range(EXAMPLES)])


@torch.inference_mode()
def student_reference(directory: Path, examples: Examples) -> Reference:
    """By transformers' own ``generate`` and forward pass, in float32."""
    runner = HfRunner(directory)
    target_scores, answers, answer_scores, gaps = [], [], [], []
    for start in range(0, len(examples.inputs), BATCH_SIZE):
        inputs, targets, limits = (part[start : start + BATCH_SIZE] for part in examples)
        target_scores += runner.score(inputs, targets)
        batch_answers = runner.generate(inputs, limits)
        answers += batch_answers
        answer_scores += runner.score(inputs, batch_answers)
        ids, mask = (torch.from_numpy(array) for array in pad(inputs, runner.model.config.pad_token_id))
        made = torch.from_numpy(pad(batch_answers, runner.model.config.pad_token_id)[0])
        first = torch.full((len(made), 1), runner.model.config.decoder_start_token_id)
        logits = runner.model(
            input_ids=ids, attention_mask=mask, decoder_input_ids=torch.cat([first, made[:, :-1]], dim=1)
        ).logits
        best = logits.log_softmax(-1).topk(2).values
        rows = (best[..., 0] - best[..., 1]).tolist()
        gaps += [row[: len(answer)] for row, answer in zip(rows, batch_answers, strict=True)]
    return Reference(target_scores, answers, answer_scores, gaps)


def ask(directory: Path, examples: Examples, answers: list[list[int]]) -> dict[str, Any]:
    """What the export's own runtime makes of the examples, from a process that imports no other.

    Args:
        answers: the student's, whose tokens are scored too.

    Returns:
        target_scores, answers, answer_scores as in ``Reference``; compute_type; versions of what was imported.

    Raises:
        ParityFailure: the runtime cannot load the export, or fails on it.
    """
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory() as tmp_dir:
        request, reply = Path(tmp_dir) / "request.json", Path(tmp_dir) / "reply.json"
        request.write_text(json.dumps({**examples._asdict(), "answers": answers, "batch_size": BATCH_SIZE}))
        done = subprocess.run(
            [sys.executable, "-m", "students.runtime", str(directory), str(request), str(reply)],
            env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise ParityFailure(f"the export cannot be run by its own runtime: {last}")
        return json.loads(reply.read_text())


def ask_plain_t5(directory: Path, examples: Examples, reference: Reference) -> Parity:
    """By how much ``PlainT5`` differs on an ``hf`` export, on 4 examples from the longest to the shortest.

    It scores the targets and the student's answers, and gives no answers of its own.

    Raises:
        ParityFailure: it cannot read the export.
    """
    by_length = sorted(range(EXAMPLES), key=lambda number: len(examples.inputs[number]))
    chosen = by_length[:: -(EXAMPLES // 3)]

    def of_chosen(rows: list) -> list:
        return [rows[number] for number in chosen]

    inputs, answers = of_chosen(examples.inputs), of_chosen(reference.answers)
    known = Reference(
        of_chosen(reference.target_scores), answers, of_chosen(reference.answer_scores), of_chosen(reference.gaps)
    )
    try:
        reader = PlainT5(directory)
        targets = reader.score(inputs, of_chosen(examples.targets))
        reply = {"target_scores": targets, "answers": answers, "answer_scores": reader.score(inputs, answers)}
    except Exception as error:  # of many kinds: each means that the files are not those of a T5 as it is documented
        cause = f"{type(error).__name__} {error}"
        raise ParityFailure(f"the export cannot be read without transformers: {cause}; nothing was kept") from error
    return compare(known, reply)


def compare(reference: Reference, reply: dict[str, Any]) -> Parity:
    """What an export makes of the examples (see ``ask``) against what the student makes of them."""
    different = np.abs(_flat(reply["answer_scores"]) - _flat(reference.answer_scores))
    quality = _flat(reply["target_scores"]).mean()
    gaps = []
    for mine, answer, row in zip(reply["answers"], reference.answers, reference.gaps, strict=True):
        if mine != answer:
            # Where one is the beginning of the other, it ended, or went on, without a word that could be compared.
            first = next((n for n, (a, b) in enumerate(zip(mine, answer, strict=False)) if a != b), None)
            gaps.append(math.inf if first is None else row[first])
    return Parity(
        tokens=len(_flat(reference.target_scores)),
        log_probability_difference_mean=float(different.mean()),
        log_probability_difference_max=float(different.max()),
        quality_difference=float(quality - _flat(reference.target_scores).mean()),
        greedy_agreement=1 - len(gaps) / len(reply["answers"]),
        greedy_gap=max(gaps, default=0.0),
    )


def check(parity: Parity, precision: str, what: str) -> None:
    """Raise a ParityFailure that begins with ``what`` where an export of this precision differs by too much."""
    if failures := parity.failures(tolerance_of(precision)):
        raise ParityFailure(f"{what}: {'; '.join(failures)}; nothing was kept")


def _flat(rows: list[list[float]]) -> np.ndarray:
    return np.concatenate([np.asarray(row, dtype=float) for row in rows])


def tolerance_of(precision: str) -> Tolerance:
    return TOLERANCES["float32" if precision == "float32" else "int8"]
