"""The activations of a teacher's Switch layers on calibration text, and the errors of a student's FFNs on them.

N tokens, D d_model.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import SwitchTransformersForConditionalGeneration, T5ForConditionalGeneration

from distill.data.examples import Batch, checked_batch
from distill.models.layerwise import InPlace, States, in_memory, run_by_block
from students.weight_map import renumbered
from teachers.build import SwitchFeedForward, short_name, switch_layers

_TOKENS = 8192  # that pass through a dense FFN at a time


class Activations(NamedTuple):
    """The activations of one Switch layer on all tokens of the text but padding, in float32."""

    inputs: torch.Tensor  # [N, D], the input of the router and the experts, after the layer norm
    expert: torch.Tensor  # [N] int64, the expert that the router chooses, for dropped tokens too
    gate: torch.Tensor  # [N], the router's probability of that expert; 0 if the output is 0, as of a dropped token
    outputs: torch.Tensor  # [N, D], the gate times the expert's output; 0 for a dropped token

    def in_parts(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Inputs and outputs of some tokens at a time, because a wide FFN has many hidden activations per token."""
        return zip(self.inputs.split(_TOKENS), self.outputs.split(_TOKENS), strict=True)


def record(
    teacher: SwitchTransformersForConditionalGeneration,
    batches: Iterable[Batch],
    *,
    in_place: InPlace = in_memory,
    states: States | None = None,
) -> Iterator[tuple[str, Activations]]:
    """Record the activations of one Switch layer after the other in a pass over ``batches``, in eval mode.

    Besides the states of the text, memory holds two float32 vectors [D] per token for each layer that the caller
    keeps. The routing depends on the batch size, because the capacity of an expert does.

    Args:
        teacher: a model of ``teachers.load_teacher``; its training mode is restored.
        batches: ``input_ids`` [B, S] and ``labels`` [B, T], both int64; padded as for ``hidden_states``.
        in_place: puts the weights of a block in their place; see ``distill.models.layerwise``.
        states: where the states of the text are kept; None: in memory.

    Yields:
        The name of the layer's module, such as ``encoder.block.1.layer.1``, and its activations on the teacher's
        device. The weights of the layer are in their place.

    Raises:
        ValueError: there is no batch, or a batch has another type or shape.
        DiskFull: there is no space for the states.
    """
    text = [checked_batch(batch) for batch in batches]
    if not text:
        raise ValueError("calibration needs at least one batch")
    layers = {name.partition(".layer.")[0]: (name, block) for name, block in switch_layers(teacher)}
    seen: list[Activations] = []  # of one layer, for each batch
    handles = [block.mlp.register_forward_hook(_collect(block, seen)) for _, block in layers.values()]
    was_training = teacher.training
    try:
        teacher.eval()
        with states or States() as kept:
            for block_name in run_by_block(teacher, text, kept, in_place):
                if block_name in layers:
                    activations = Activations(*map(torch.cat, zip(*seen, strict=True)))
                    seen.clear()
                    yield layers[block_name][0], activations
                    del activations
    finally:
        teacher.train(was_training)
        for handle in handles:
            handle.remove()


def _collect(block: SwitchFeedForward, seen: list[Activations]) -> Callable[..., None]:
    """A hook of a Switch layer that appends its activations on a batch."""

    def hook(
        layer: nn.Module, args: tuple[torch.Tensor, torch.Tensor | None], output: tuple[torch.Tensor, Any]
    ) -> None:
        hidden, mask = args
        inputs, outputs = (
            (tensor.flatten(0, -2) if mask is None else tensor[mask]).float() for tensor in (hidden, output[0])
        )
        gate, expert = F.linear(inputs, block.mlp.router.weight.float()).softmax(-1).max(-1)
        # The output is exactly zero if the token is dropped, or if all hidden activations of its expert are zero.
        seen.append(Activations(inputs, expert, gate.masked_fill(~outputs.any(-1), 0), outputs))

    return hook


@torch.no_grad()
def ffn_errors(
    student: T5ForConditionalGeneration,
    recorded: Iterable[tuple[str, Activations]],
    kept: Sequence[int] | None = None,
) -> dict[str, float]:
    """The relative squared error of each FFN that replaces a Switch layer, on the teacher's activations.

    Args:
        student: a student of the teacher, in any mode.
        recorded: the result of ``record``.
        kept: the decoder layers of the teacher that the student has (``students.weight_map.kept_layers``); None: all.

    Returns:
        ``sum |FFN(x) - y|^2 / sum |y|^2`` over the tokens of ``recorded``, by short names of the teacher's layers such
        as ``encoder.1``. 0 is a perfect FFN; an FFN whose output is zero has error 1.
    """
    errors = {}
    for name, activations in recorded:
        own = name if kept is None else renumbered(name, kept)
        if own is not None:
            errors[short_name(name)] = _error(student.get_submodule(f"{own}.DenseReluDense"), activations)
        del activations  # before those of the next layer are recorded
    return errors


def _error(ffn: nn.Module, activations: Activations) -> float:
    was_training, device = ffn.training, next(ffn.parameters()).device
    ffn.eval()
    squares = [(ffn(x.to(device)) - y.to(device)).square().sum() for x, y in activations.in_parts()]
    ffn.train(was_training)
    return float(torch.stack(squares).sum() / activations.outputs.square().sum())
