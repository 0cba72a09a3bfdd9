"""The activations of a teacher's Switch layers on calibration text, and the errors of a student's FFNs on them.

N tokens, D d_model.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import SwitchTransformersForConditionalGeneration, T5ForConditionalGeneration

from distill.data.examples import Batch, checked_batch
from distill.models.t5_forward import hidden_states
from teachers.build import SwitchFeedForward, short_name, switch_layers


class Activations(NamedTuple):
    """The activations of one Switch layer on all tokens of the text, in float32."""

    inputs: torch.Tensor  # [N, D], the input of the router and the experts, after the layer norm
    expert: torch.Tensor  # [N] int64, the expert that the router chooses, for dropped tokens too
    gate: torch.Tensor  # [N], the router's probability of that expert; 0 for a dropped token
    outputs: torch.Tensor  # [N, D], the gate times the expert's output; 0 for a dropped token


@torch.no_grad()
def record(teacher: SwitchTransformersForConditionalGeneration, batches: Iterable[Batch]) -> dict[str, Activations]:
    """Record the activations of every Switch layer in one pass over ``batches``, in eval mode.

    Memory holds two float32 vectors [D] per token and Switch layer. The routing depends on the batch size, because
    the capacity of an expert does.

    Args:
        teacher: a model of ``teachers.load_teacher``; its training mode is restored.
        batches: ``input_ids`` [B, S] and ``labels`` [B, T], both int64.

    Returns:
        The activations, on the teacher's device, by the name of the layer's module, such as
        ``encoder.block.1.layer.1``.

    Raises:
        ValueError: there is no batch, or a batch has another type or shape.
    """
    seen: dict[str, list[Activations]] = {name: [] for name, _ in switch_layers(teacher)}

    def collect(name: str, block: SwitchFeedForward) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[torch.Tensor, ...], output: tuple[torch.Tensor, Any]) -> None:
            inputs, outputs = (tensor.flatten(0, -2).float() for tensor in (args[0], output[0]))
            gate, expert = F.linear(inputs, block.mlp.router.weight.float()).softmax(-1).max(-1)
            dropped = ~outputs.any(-1)  # a dropped token's output is exactly zero
            seen[name].append(Activations(inputs, expert, gate.masked_fill(dropped, 0), outputs))

        return hook

    handles = [block.mlp.register_forward_hook(collect(name, block)) for name, block in switch_layers(teacher)]
    was_training = teacher.training
    try:
        teacher.eval()
        for batch in batches:
            hidden_states(teacher, *checked_batch(batch).to(teacher.device))
    finally:
        teacher.train(was_training)
        for handle in handles:
            handle.remove()
    if not all(seen.values()):
        raise ValueError("calibration needs at least one batch")
    return {name: Activations(*map(torch.cat, zip(*parts, strict=True))) for name, parts in seen.items()}


@torch.no_grad()
def ffn_errors(student: T5ForConditionalGeneration, recorded: dict[str, Activations]) -> dict[str, float]:
    """The relative squared error of each FFN that replaces a Switch layer, on the teacher's activations.

    Args:
        student: a student of the teacher, in any mode.
        recorded: the result of ``record``.

    Returns:
        ``sum |FFN(x) - y|^2 / sum |y|^2`` over the tokens of ``recorded``, by short names such as ``encoder.1``. 0 is
        a perfect FFN; an FFN whose output is zero has error 1.
    """
    errors = {}
    for name, (inputs, _, _, outputs) in recorded.items():
        ffn = student.get_submodule(f"{name}.DenseReluDense")
        was_training = ffn.training
        error = ffn.eval()(inputs.to(student.device)) - outputs.to(student.device)
        ffn.train(was_training)
        errors[short_name(name)] = float(error.square().sum() / outputs.square().sum())
    return errors
