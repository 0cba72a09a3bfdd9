"""T5's span corruption on token ids (section 2 of the paper; Raffel et al. 2020, section 3.1.4).

Inputs and outputs have fixed lengths, so there is no padding. B rows, L raw tokens.
"""

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np

from distill.arguments import require
from distill.errors import UserError


class SpanLengths(NamedTuple):
    """Numbers of tokens and spans per example."""

    noise_tokens: int
    spans: int
    inputs: int
    targets: int


def span_lengths(raw_length: int, *, noise_density: float = 0.15, mean_span_length: float = 3.0) -> SpanLengths:
    """The lengths after corruption of ``raw_length`` tokens. Inputs and targets include a final ``eos``.

    With the paper's density and span length, 568 raw tokens give 512 inputs and 114 targets.

    Raises:
        ValueError: an argument is out of range. At least 2 tokens are needed: one to keep and one to replace.
    """
    require("raw_length", raw_length, "at least 2 tokens", lambda length: length >= 2)
    require("noise_density", noise_density, "a number between 0 and 1", lambda density: 0 < density < 1)
    require("mean_span_length", mean_span_length, "a number of at least 1", lambda length: 1 <= length < math.inf)
    noise = min(max(round(raw_length * noise_density), 1), raw_length - 1)
    spans = min(max(round(noise / mean_span_length), 1), noise, raw_length - noise)
    return SpanLengths(noise, spans, raw_length - noise + spans + 1, noise + spans + 1)


def raw_length_for(input_length: int, *, noise_density: float = 0.15, mean_span_length: float = 3.0) -> int:
    """The largest number of raw tokens that gives exactly ``input_length`` inputs.

    Raises:
        UserError: no raw length gives exactly ``input_length`` inputs.
    """
    raw, best = 2, 0
    while (inputs := span_lengths(raw, noise_density=noise_density, mean_span_length=mean_span_length).inputs) <= (
        input_length
    ):
        best = raw if inputs == input_length else best
        raw += 1
        if raw > 64 * input_length:
            break
    if not best:
        raise UserError(
            f"input_length {input_length} cannot be reached at noise_density {noise_density} "
            f"and mean_span_length {mean_span_length}; choose a longer input_length"
        )
    return best


def _segment(total: int, segments: int, generator: np.random.Generator) -> np.ndarray:
    """Draw ``segments`` positive lengths that sum to ``total``, uniformly from all such compositions."""
    cuts = np.sort(generator.permutation(total - 1)[: segments - 1]) + 1
    return np.diff(cuts, prepend=0, append=total)


def corrupt_spans(
    tokens: np.ndarray,
    generator: np.random.Generator | Sequence[np.random.Generator],
    *,
    noise_density: float = 0.15,
    mean_span_length: float = 3.0,
    sentinel_start: int,
    eos: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Replace each of several random spans with a sentinel. The targets are the sentinels, each followed by its span.

    Args:
        tokens: integer ids, [L] or [B, L], without sentinels and ``eos``.
        generator: draws the spans. For [B, L], one generator per row: a row does not depend on the other rows.
        noise_density: share of the tokens to replace, in (0, 1).
        mean_span_length: mean number of tokens of a span, at least 1.
        sentinel_start: id of the first sentinel; the k-th is ``sentinel_start - k``, as in T5.
        eos: id appended to inputs and targets.

    Returns:
        Inputs [(B,) inputs] and targets [(B,) targets], int64, with the lengths from ``span_lengths``.

    Raises:
        ValueError: an argument has a wrong type, shape or value, or ``sentinel_start`` leaves fewer ids than spans.
    """
    tokens = np.asarray(tokens)
    if tokens.ndim not in (1, 2) or tokens.dtype.kind not in "iu":
        raise ValueError(f"tokens are {tokens.dtype} of shape {tokens.shape}; they must be integers, [L] or [B, L]")
    single = tokens.ndim == 1
    generators: Any = [generator] if single else generator
    if single:
        tokens = tokens[None]
    rows, length = tokens.shape
    noise, spans, num_inputs, num_targets = span_lengths(
        length, noise_density=noise_density, mean_span_length=mean_span_length
    )
    _check_generators(generators, rows)
    needed = f"the id of the first of {spans} sentinels, {spans - 1} or above"
    require("sentinel_start", sentinel_start, needed, lambda id_: isinstance(id_, Integral) and int(id_) >= spans - 1)
    require("eos", eos, "an id", lambda id_: isinstance(id_, Integral) and int(id_) >= 0)
    # Kept spans and noise spans alternate. The first span is kept and the last one is noise, as in T5's own code.
    lengths = np.empty((rows, spans, 2), dtype=np.int64)
    for row, row_generator in enumerate(generators):
        lengths[row, :, 0] = _segment(length - noise, spans, row_generator)
        lengths[row, :, 1] = _segment(noise, spans, row_generator)
    is_noise = np.repeat(np.tile([False, True], rows * spans), lengths.ravel()).reshape(rows, length)

    sentinels = sentinel_start - np.arange(spans)
    inputs = _replace_runs(tokens, is_noise, sentinels, num_inputs, eos)
    targets = _replace_runs(tokens, ~is_noise, sentinels, num_targets, eos)
    return (inputs[0], targets[0]) if single else (inputs, targets)


def _check_generators(generators: Sequence[np.random.Generator], rows: int) -> None:
    needed = "a numpy.random.Generator for [L], one for each row of [B, L]"
    require("generator", generators, needed, lambda given: len(given) == rows)
    for one in generators:
        require("generator", one, needed, lambda given: isinstance(given, np.random.Generator))


def _replace_runs(tokens: np.ndarray, runs: np.ndarray, sentinels: np.ndarray, length: int, eos: int) -> np.ndarray:
    """Replace each run of True in ``runs`` [B, L] with the next sentinel and append ``eos``; returns [B, length]."""
    starts = runs.copy()
    starts[:, 1:] &= ~runs[:, :-1]
    replaced = tokens.astype(np.int64)
    replaced[starts] = np.tile(sentinels, len(tokens))  # every row has the same number of runs
    kept = replaced[~runs | starts].reshape(len(tokens), length - 1)
    return np.concatenate([kept, np.full((len(tokens), 1), eos)], axis=1)
