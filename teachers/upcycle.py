"""A teacher that begins as a dense model (sparse upcycling, Komatsuzaki et al., 2023)."""

import torch
from transformers import SwitchTransformersForConditionalGeneration, T5ForConditionalGeneration

from teachers.model import EXPERT_WEIGHTS, switch_layers


@torch.no_grad()
def upcycle(
    teacher: SwitchTransformersForConditionalGeneration, dense: T5ForConditionalGeneration
) -> SwitchTransformersForConditionalGeneration:
    """Give a new ``teacher`` the weights of ``dense``, in place; each expert begins as the FFN that it replaces.

    Routers keep the weights that they were drawn with. What an expert says is multiplied by its gate, which is about
    1 / experts at the start: training makes up for it within some ten steps.

    Raises:
        ValueError: the two have not the same shape.
    """
    layers, source = dict(switch_layers(teacher)), dense.state_dict()
    for name, tensor in teacher.state_dict().items():
        owner, _, weight = name.rpartition(".mlp.")
        if weight == "router.weight":
            continue
        if owner in layers:
            names = EXPERT_WEIGHTS[layers[owner].mlp.wi_gate is not None]
            weight = f"{next(plain for plain, ours in names.items() if ours == weight)}.weight"
        value = source[f"{owner}.DenseReluDense.{weight}" if owner else name]
        if value.shape != tensor.shape[-value.ndim :]:
            raise ValueError(
                f"{name} is {list(tensor.shape)} in the teacher and {list(value.shape)} in the dense model"
            )
        tensor.copy_(value)  # to every expert
    return teacher
