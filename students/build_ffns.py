"""Build the FFNs of a student that replace Switch layers from the experts, one layer at a time."""

from collections.abc import Iterable, Iterator

import torch
from transformers import SwitchTransformersForConditionalGeneration, T5ForConditionalGeneration

from distill.data.examples import Batch
from distill.models.layerwise import InPlace, States, in_memory
from students.calibration import Activations, record
from students.ffn_init import FFN, METHODS, SwitchExperts
from teachers.build import switch_layers


@torch.no_grad()
def build_ffns(
    teacher: SwitchTransformersForConditionalGeneration,
    student: T5ForConditionalGeneration,
    ffn_init: str,
    seed: int,
    calibration: Iterable[Batch] | None,
    *,
    in_place: InPlace = in_memory,
    states: States | None = None,
) -> dict[str, int]:
    """Build the FFNs that replace Switch layers. The activations of a layer are freed before the next one.

    Args:
        teacher: a model of ``teachers.load_teacher``.
        student: gets the FFNs.
        ffn_init: the name of a method of ``students.ffn_init``.
        seed: of the method.
        calibration: batches of training text; None for methods that need none.
        in_place: puts the weights of a block of the teacher in their place; see ``distill.models.layerwise``.
        states: where the states of the text are kept; None: in memory.

    Returns:
        The numbers of "tensors" and "parameters" that were built.

    Raises:
        ValueError: there is no batch, or a batch has another type or shape.
        DiskFull: there is no space for the states.
    """
    layers, tensors, parameters = dict(switch_layers(teacher)), 0, 0
    if calibration is None:
        each: Iterator[tuple[str, Activations | None]] = _without_text(list(layers), in_place)
    else:
        each = iter(record(teacher, calibration, in_place=in_place, states=states))
    for name, activations in each:
        layer = layers[name].mlp
        rows = layer.wi if layer.wi_gate is None else torch.cat([layer.wi, layer.wi_gate], -1)
        experts = FFN(rows.detach().float(), layer.wo.detach().mT.float())
        wi, wo = METHODS[ffn_init](SwitchExperts(experts, layer.activation, activations), seed)
        inner, *gate = wi.split(wo.shape[-1], -1)
        weights = {"wi_1": inner, "wi_0": gate[0]} if gate else {"wi": inner}
        for weight, value in {**weights, "wo": wo.mT}.items():
            student.get_parameter(f"{name}.DenseReluDense.{weight}.weight").copy_(value)
            tensors, parameters = tensors + 1, parameters + value.numel()
    return {"tensors": tensors, "parameters": parameters}


def _without_text(names: list[str], in_place: InPlace) -> Iterator[tuple[str, None]]:
    for name in names:
        with in_place(name.partition(".layer.")[0]):
            yield name, None
