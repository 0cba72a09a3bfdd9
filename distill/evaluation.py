"""Quality: negative log perplexity on held-out examples (the measure in every table of the paper)."""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel

from distill.arguments import require
from distill.data.examples import IGNORE_INDEX, Batch, ExampleSet, checked_batch
from distill.models.layerwise import Forward, by_batch
from distill.models.t5_forward import CALL, hidden_states, is_known

_CHUNK = 2**23  # logits in memory at a time: 32 MiB in float32


@torch.no_grad()
def negative_log_perplexity(
    model: PreTrainedModel, batches: Iterable[Batch], *, forward: Forward = by_batch
) -> tuple[float, np.ndarray]:
    """Minus the mean cross-entropy per target token, in nats; higher is better.

    Args:
        model: a T5 or Switch model. It runs in eval mode; its mode is restored afterwards.
        batches: ``input_ids`` [B, S] and ``labels`` [B, T], padded as for ``distill.models.t5_forward.hidden_states``.
        forward: the forward pass; see ``distill.models.layerwise``.

    Returns:
        The quality, and the mean cross-entropy of each example, float64 [examples]. If all examples have the same
        number of targets, the mean of the second is minus the first.

    Raises:
        ValueError: there are no batches, an example has no label other than -100, or the model or a batch has the
            wrong type or shape.
    """
    needed = "a T5, or a Switch model from teachers.load_teacher"
    require("model", type(model).__name__, needed, lambda _: is_known(model))
    was_training = model.training
    model.eval()
    losses, counts = [], []  # on the device until the end, so that no batch waits for the one before
    for _, labels, hidden, head in forward(model, map(checked_batch, batches), lambda done: None):
        losses.append(cross_entropies(hidden, head, labels.flatten()).view(labels.shape))
        counts.append((labels != IGNORE_INDEX).sum(-1))
    model.train(was_training)
    if not losses or not torch.cat(counts).all():
        raise ValueError("quality needs at least one example, each with at least one label that is not -100")
    total, tokens = torch.cat([one.cpu().double().sum(-1) for one in losses]), torch.cat(counts).cpu()
    return -float(total.sum() / tokens.sum()), (total / tokens).numpy()


def evaluate(
    model: PreTrainedModel,
    examples: ExampleSet,
    *,
    batch_size: int,
    accelerator: Accelerator,
    forward: Forward = by_batch,
) -> tuple[float, np.ndarray]:
    """``negative_log_perplexity`` on all evaluated examples. The processes share the batches among them.

    Each process takes whole batches. A teacher's expert capacity depends on the batch, and the number of processes
    must not change the result.

    Returns:
        The quality, and the mean cross-entropy of each example in nats, float64 [examples]; equal in all processes.
    """
    count, processes = len(examples), accelerator.num_processes
    losses = torch.zeros(count, dtype=torch.float64)
    starts = range(0, count, batch_size)
    mine = [range(start, min(start + batch_size, count)) for start in starts[accelerator.process_index :: processes]]
    with accelerator.autocast():
        if mine:
            _, values = negative_log_perplexity(model, map(examples.batch, mine), forward=forward)
            losses[[row for rows in mine for row in rows]] = torch.from_numpy(values)
        if runs_in_step(model) and -(-len(starts) // processes) > len(mine):
            _run_padding(model)
    if processes > 1:
        losses = accelerator.reduce(losses.to(accelerator.device), "sum").cpu()
    return -float(np.average(losses.numpy(), weights=examples.target_tokens)), losses.numpy()


def runs_in_step(model: nn.Module) -> bool:
    """Whether the processes share the weights or the experts of ``model``, and so must run it at the same time."""
    return any(hasattr(module, CALL) or getattr(module, "divided", False) for module in model.modules())


@torch.no_grad()
def _run_padding(model: PreTrainedModel) -> None:
    """A forward pass without tokens, so that this process takes part in the last one of the others."""
    padding = torch.full((1, 1), model.config.pad_token_id, device=model.device)
    hidden_states(model, padding, torch.full_like(padding, IGNORE_INDEX))


def cross_entropies(hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The cross-entropy of each token in nats, [N] float32; 0 for tokens whose label is -100.

    The tokens are processed in chunks, so the memory for logits does not depend on N. ``F.linear_cross_entropy`` takes
    at least twice as long in bfloat16 and rounds the losses to bfloat16.

    Args:
        hidden: [N, d_model], scaled so that ``hidden @ head.T`` are the logits. The product has its dtype.
        head: [vocabulary, d_model].
        labels: [N] token ids.
    """
    head, size = head.to(hidden.dtype), max(_CHUNK // len(head), 1)
    losses = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)
    with torch.autocast(hidden.device.type, enabled=False):
        for start in range(0, len(labels), size):
            rows = slice(start, start + size)
            logits = F.linear(hidden[rows], head).float()
            losses[rows] = F.cross_entropy(logits, labels[rows], ignore_index=IGNORE_INDEX, reduction="none")
    return losses
