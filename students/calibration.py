"""What passes through every Switch layer of a teacher on some text, and how well a student's FFNs do the same.

N tokens, D d_model.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import SwitchTransformersForConditionalGeneration, T5ForConditionalGeneration

from distill.data.examples import Batch, checked_batch
from distill.models.t5_forward import hidden_states
from teachers.model import short_name, switch_layers


class Activations(NamedTuple):
    """One Switch layer on all tokens of the text, in float32."""

    inputs: torch.Tensor  # [N, D], what enters the router and the experts, after the layer norm
    expert: torch.Tensor  # [N] int64, the router's choice, also of a dropped token
    gate: torch.Tensor  # [N], its probability; 0 for a dropped token
    outputs: torch.Tensor  # [N, D], the gate times the expert's output; 0 for a dropped token


@torch.no_grad()
def record(teacher: SwitchTransformersForConditionalGeneration, batches: Iterable[Batch]) -> dict[str, Activations]:
    """One pass over ``batches`` in eval mode: the activations of every Switch layer by name, on the teacher's device.

    Memory is that of two hidden states of every token for each Switch layer. The routing depends on the size of the
    batches, as the experts' capacity does.

    Raises:
        ValueError: there are no batches, or one of them is none.
    """
    seen: dict[str, list[Activations]] = {name: [] for name, _ in switch_layers(teacher)}

    def collect(name: str):
        def hook(layer: nn.Module, args: tuple, output: tuple) -> None:
            inputs, outputs = (tensor.flatten(0, -2).float() for tensor in (args[0], output[0]))
            gate, expert = F.linear(inputs, layer.router.weight.float()).softmax(-1).max(-1)
            dropped = ~outputs.any(-1)  # a dropped token's output is exactly zero
            seen[name].append(Activations(inputs, expert, gate.masked_fill(dropped, 0), outputs))

        return hook

    handles = [block.mlp.register_forward_hook(collect(name)) for name, block in switch_layers(teacher)]
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
    """Relative squared error of the FFNs that stand where the teacher has Switch layers, on the teacher's activations.

    Returns:
        ``sum |FFN(x) - y|^2 / sum |y|^2`` over the tokens of ``recorded`` for each layer, under names like
        ``encoder.1``; 0 is perfect, 1 as good as an output of zero.
    """
    errors = {}
    for name, (inputs, _, _, outputs) in recorded.items():
        ffn = student.get_submodule(name).DenseReluDense
        was_training = ffn.training
        error = ffn.eval()(inputs.to(ffn.wo.weight.device)) - outputs.to(ffn.wo.weight.device)
        ffn.train(was_training)
        errors[short_name(name)] = float(error.square().sum() / outputs.square().sum())
    return errors
