"""The examples of the parity check: corrupted pieces of a text, or pairs of a task. Imports no torch."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from distill.errors import UserError
from distill.span_corruption import corrupt_spans
from distill.special_tokens import SpecialTokens
from students.runtime import decode, encode

EXAMPLES = 64
MAX_TOKENS = 48
SHORTEST, LONGEST = 4, 144  # raw tokens of an example of a text


class ParityExamples(NamedTuple):
    """N examples of the parity check, as rows of token ids of different lengths."""

    inputs: list[list[int]]  # ``</s>`` included
    targets: list[list[int]]
    max_tokens: list[int]  # the largest number of tokens to generate for each input


def make_examples(tokens: np.ndarray, special_tokens: SpecialTokens, tokenizer: Tokenizer) -> ParityExamples:
    """Make EXAMPLES examples by span corruption of evenly spaced pieces of ``tokens`` [N].

    The pieces have SHORTEST to LONGEST tokens, or fewer if N is small.

    Raises:
        UserError: there are fewer than 4 x SHORTEST tokens per example.
    """
    longest = min(LONGEST, len(tokens) // EXAMPLES)
    if longest < 4 * SHORTEST:
        needed = EXAMPLES * 4 * SHORTEST
        raise UserError(f"the held-out text has {len(tokens)} tokens, and {needed} are needed; give more text")
    generator = np.random.default_rng(0)
    lengths = np.linspace(SHORTEST, longest, EXAMPLES).astype(int)
    generator.shuffle(lengths)  # every batch has different lengths
    inputs, targets = [], []
    for number, length in enumerate(lengths):
        start = number * len(tokens) // EXAMPLES
        corrupted, target = corrupt_spans(
            tokens[start : start + length],
            generator,
            sentinel_start=special_tokens.sentinel_start,
            eos=special_tokens.eos,
        )
        inputs.append(encode(tokenizer, decode(tokenizer, corrupted.tolist())))
        targets.append(target.tolist())
    inputs[0] = encode(tokenizer, decode(tokenizer, inputs[0][:1]))  # the shortest input
    return ParityExamples(inputs, targets, [MAX_TOKENS - number % 8 for number in range(EXAMPLES)])


def choose_pairs(lengths: np.ndarray) -> list[int]:
    """Choose at most EXAMPLES of N pairs, of short and long inputs, in an order in which neighbours differ in length.

    Args:
        lengths: numbers of input tokens, [N].
    """
    by_length = np.argsort(lengths, kind="stable")
    chosen = by_length[np.linspace(0, len(lengths) - 1, min(EXAMPLES, len(lengths))).astype(int)]
    np.random.default_rng(0).shuffle(chosen)
    return chosen.tolist()


def pair_examples(inputs: Sequence[np.ndarray], targets: Sequence[np.ndarray], max_tokens: int) -> ParityExamples:
    """The examples of N pairs of a task.

    Args:
        inputs, targets: token ids of each, ``</s>`` included.
        max_tokens: the largest number of tokens of every answer.
    """
    input_rows, target_rows = ([row.tolist() for row in rows] for rows in (inputs, targets))
    return ParityExamples(input_rows, target_rows, [max_tokens] * len(inputs))
