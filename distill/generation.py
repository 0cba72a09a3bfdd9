"""Answers of T5 and Switch models: greedy decoding and beam search.

B examples, K beams of an example, R rows that are computed together: B, or B * K with the beams of an example in a row.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedModel

from distill.arguments import require, require_sizes
from distill.models.header import is_product_matrix
from distill.models.t5_decoder import Cache, Decoder
from distill.models.t5_forward import compute_dtype, encode, is_known

# Finished examples leave the batch when this fraction or less would remain: the others' keys and values are copied.
_REMAINING = 0.75
_MULTIPLE = 8  # of the number of examples that remain: a CPU needs a kernel per shape
_NEVER = -1e9  # score of a beam that does not exist


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    inputs: Sequence[Any],
    *,
    max_length: int,
    batch_size: int,
    beams: int = 1,
    accelerator: Accelerator | None = None,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[int]]:
    """The answer of a model to each input.

    An answer depends on its input alone, up to rounding: padding is masked, and Switch layers drop no tokens. The
    products have the dtype of autocast if it is on, else that of the weights.

    Args:
        model: a T5 or Switch model with all weights in memory. It runs in eval mode; its mode is restored afterwards.
        inputs: the token ids of each input, a list or an array [S], with their final eos and without padding.
        max_length: the largest number of tokens of an answer, including its eos.
        batch_size: number of examples that are generated together.
        beams: 1 is greedy decoding. With more, an answer is that of transformers'
            ``generate(num_beams=beams, early_stopping=False, length_penalty=1.0)``.
        accelerator: its processes share the batches. None if there is one process.
        on_batch: is called after each batch with the number of finished batches, and of all batches, of this process.

    Returns:
        The token ids of each answer without decoder start, padding and eos, in the order of ``inputs``; equal in all
        processes.

    Raises:
        ValueError: an argument has the wrong type or is out of range, or an input has no tokens.
    """
    needed = "a T5, or a Switch model from teachers.load_teacher"
    require("model", type(model).__name__, needed, lambda _: is_known(model))
    require_sizes(max_length=max_length, batch_size=batch_size, beams=beams)
    rows, config = _checked_rows(inputs, model.config.vocab_size), model.config
    name = "decoder_start_token_id of the model"
    require(name, config.decoder_start_token_id, "a token id", lambda given: given >= 0)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]), reverse=True)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if accelerator is not None:
        batches = batches[accelerator.process_index :: accelerator.num_processes]
    search = _greedy if beams == 1 else _beam_search
    found: list[tuple[int, list[int]]] = []
    with _prepared(model):
        decoder = Decoder(model, compute_dtype(model.lm_head.weight))
        for number, batch in enumerate(batches, 1):
            encoded = encode(model, _padded([rows[index] for index in batch], config.pad_token_id).to(model.device))
            with torch.autocast(model.device.type, enabled=False):
                found += zip(batch, search(decoder, decoder.start(encoded, beams), config, max_length), strict=True)
            on_batch(number, len(batches))
    if accelerator is not None and accelerator.num_processes > 1:
        found = gather_object(found)
    return [answer for _, answer in sorted(found)]


def _checked_rows(inputs: Any, vocabulary_size: int) -> list[np.ndarray]:
    """The inputs as arrays."""
    needed = "a list of sequences of token ids"
    require("inputs", inputs, needed, lambda given: not isinstance(given, str) and bool([*given, 1]))
    rows = [np.asarray(row) for row in inputs]
    for number, row in enumerate(rows):
        needed = f"a sequence of one or more token ids below {vocabulary_size}"
        known = row.ndim == 1 and row.size > 0 and row.dtype.kind in "iu"
        valid = bool(known and row.min() >= 0 and row.max() < vocabulary_size)
        if not valid:
            require(f"inputs[{number}]", inputs[number], needed, lambda _: False)
    return rows


def _padded(rows: list[np.ndarray], pad: int) -> torch.Tensor:
    """[len(rows), length of the longest]"""
    ids = np.full((len(rows), max(map(len, rows))), pad)
    for padded, row in zip(ids, rows, strict=True):
        padded[: len(row)] = row
    return torch.from_numpy(ids)


@contextmanager
def _prepared(model: PreTrainedModel) -> Iterator[None]:
    """Eval mode, and Switch layers that drop no tokens and have the experts' weights in the dtype of the products.

    These layers would otherwise cast the weights for every token. This package does not know their class.
    """
    was_training = model.training
    modules: list[Any] = [module for module in model.modules() if hasattr(module, "drops_tokens")]
    layers = [(module, module.drops_tokens) for module in modules]
    parameters = [named for layer, _ in layers for named in layer.named_parameters()]
    weights = [(parameter, parameter.data) for name, parameter in parameters if is_product_matrix(name, parameter.ndim)]
    try:
        model.eval()
        for layer, _ in layers:
            layer.drops_tokens = False
        for parameter, values in weights:
            parameter.data = values.to(compute_dtype(values))
        yield
    finally:
        for parameter, values in weights:
            parameter.data = values
        for layer, drops_tokens in layers:
            layer.drops_tokens = drops_tokens
        model.train(was_training)


def _greedy(decoder: Decoder, cache: Cache, config: Any, max_length: int) -> list[list[int]]:
    """Greedy answers; ``config`` is that of the model."""
    device, eos = cache.device, config.eos_token_id
    examples = torch.arange(cache.rows, device=device)  # that remain
    answers = torch.full((cache.rows, max_length), eos, device=device)
    done = torch.zeros(cache.rows, dtype=torch.bool, device=device)
    tokens = torch.full((cache.rows,), config.decoder_start_token_id, device=device)
    for position in range(max_length):
        tokens = _argmax(decoder.step(cache, tokens))
        answers[examples, position] = tokens
        done |= tokens == eos
        if (kept := _remaining(done)) is not None:
            if not len(kept):
                break
            cache.select_examples(kept)
            cache.select_rows(kept)
            examples, tokens, done = examples[kept], tokens[kept], done[kept]
    return _without_special(answers, config)


def _remaining(done: torch.Tensor) -> torch.Tensor | None:
    """The examples that remain in the batch, first those that are not done; None if all remain."""
    unfinished = len(done) - int(done.sum())
    count = -(-unfinished // _MULTIPLE) * _MULTIPLE
    return done.byte().argsort(stable=True)[:count] if count <= _REMAINING * len(done) else None


def _argmax(scores: torch.Tensor) -> torch.Tensor:
    """The index of the largest value in each row. On a CPU, numpy takes a tenth of the time of torch."""
    if scores.device.type == "cpu":
        return torch.from_numpy(scores.float().numpy().argmax(-1))
    return scores.argmax(-1)


def _beam_search(decoder: Decoder, cache: Cache, config: Any, max_length: int) -> list[list[int]]:
    """The best finished answers; ``config`` is that of the model.

    The K beams of an example have 2 K best continuations. Those of the first K that end are finished; their score is
    the mean log probability of their tokens. The best K that do not end are the next beams. An example is done if the
    score of its best beam is not above those of K finished answers.
    """
    device, eos, beams = cache.device, config.eos_token_id, cache.rows // cache.examples
    examples = torch.arange(cache.examples, device=device)  # that remain
    answers = torch.full((len(examples), max_length), eos, device=device)
    done = torch.zeros(len(examples), dtype=torch.bool, device=device)
    tokens = torch.empty(len(examples), beams, 0, dtype=torch.int64, device=device)
    log_probs = torch.full((len(examples), beams), _NEVER, device=device)
    log_probs[:, 0] = 0  # at first all beams are the same
    finished = torch.full((len(examples), beams, max_length), eos, device=device)
    scores = torch.full_like(log_probs, _NEVER)  # of finished answers
    last = torch.full((cache.rows,), config.decoder_start_token_id, device=device)
    for length in range(1, max_length + 1):
        logits = decoder.step(cache, last).float().unflatten(0, (-1, beams))
        values, parents, tokens = _continuations(logits, log_probs, tokens)
        ends = (tokens[..., -1] == eos) | (length == max_length)

        newly = ends[:, :beams] & ~done[:, None]
        scores, chosen = torch.cat([scores, (values[:, :beams] / length).where(newly, _NEVER)], 1).topk(beams)
        padded = F.pad(tokens[:, :beams], (0, max_length - length), value=eos)
        finished = _take(torch.cat([finished, padded], 1), chosen)
        answers[examples] = finished[:, 0]  # the best so far

        log_probs, chosen = values.masked_fill(ends, _NEVER).topk(beams)
        tokens, parents = _take(tokens, chosen), _take(parents, chosen)
        rows = parents + beams * torch.arange(len(parents), device=device)[:, None]
        done |= log_probs[:, 0] / length <= scores[:, -1]
        if (kept := _remaining(done)) is not None:
            if not len(kept):
                break
            cache.select_examples(kept)
            examples, tokens, log_probs, rows = examples[kept], tokens[kept], log_probs[kept], rows[kept]
            finished, scores, done = finished[kept], scores[kept], done[kept]
        cache.select_rows(rows.flatten())
        last = tokens[..., -1].flatten()
    return _without_special(answers, config)


def _continuations(
    logits: torch.Tensor, log_probs: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The 2 K best continuations of the K beams of each example, best first.

    Args:
        logits: [B, K, vocabulary].
        log_probs: [B, K], of the beams so far.
        tokens: [B, K, length], of the beams so far.

    Returns:
        Their log probabilities [B, 2 K], the numbers of the beams that they continue [B, 2 K], and their tokens
        [B, 2 K, length + 1].
    """
    count = 2 * logits.shape[1]
    # The best of all beams are among the best of each: this avoids log probabilities of the whole vocabulary.
    best, ids = logits.topk(min(count, logits.shape[2]))
    best = best - logits.logsumexp(-1, keepdim=True) + log_probs[..., None]
    values, chosen = best.flatten(1).topk(count)
    parents = chosen // best.shape[2]
    return values, parents, torch.cat([_take(tokens, parents), ids.flatten(1).gather(1, chosen)[..., None]], -1)


def _take(values: torch.Tensor, chosen_BK: torch.Tensor) -> torch.Tensor:
    """The chosen entries of each example: [B, N] or [B, N, length] -> [B, K] or [B, K, length]."""
    index = chosen_BK if values.ndim == 2 else chosen_BK[..., None].expand(-1, -1, values.shape[2])
    return values.gather(1, index)


def _without_special(answers: torch.Tensor, config: Any) -> list[list[int]]:
    """The tokens of each row before the first eos, without padding."""
    eos, pad = config.eos_token_id, config.pad_token_id
    rows = [row[: row.index(eos)] if eos in row else row for row in answers.tolist()]
    return [[token for token in row if token != pad] for row in rows]
