"""Build the FFNs of a student that replace Switch layers from the experts, one layer at a time."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from transformers import SwitchTransformersForConditionalGeneration, T5ForConditionalGeneration

from distill.data.examples import Batch
from distill.models.layerwise import InPlace, States, in_memory
from students.calibration import Activations, record
from students.ffn_init import FFN, METHODS, SwitchExperts
from students.weight_map import renumbered
from teachers.build import SwitchFeedForward, switch_layers


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
    kept: Sequence[int] | None = None,
) -> dict[str, int]:
    """Build the FFNs that replace Switch layers. The activations of a layer are freed before the next one.

    If a method gives fewer neurons than the student's FFN has, the others do not change the function: they keep their
    random ``wi``, and get a ``wo`` of zero.

    Args:
        teacher: a model of ``teachers.load_teacher``.
        student: gets the FFNs.
        ffn_init: the name of a method of ``students.ffn_init``.
        seed: of the method.
        calibration: batches of training text; None for methods that need none.
        in_place: puts the weights of a block of the teacher in their place; see ``distill.models.layerwise``.
        states: where the states of the text are kept; None: in memory.
        kept: the decoder layers of the teacher that the student has (``students.weight_map.kept_layers``); None: all.

    Returns:
        The numbers of "tensors" and "parameters" that were built, and the number of "added" parameters of the other
        neurons.

    Raises:
        ValueError: there is no batch, or a batch has another type or shape.
        DiskFull: there is no space for the states.
    """
    layers = {name: layer for name, layer in switch_layers(teacher) if kept is None or renumbered(name, kept)}
    counts = {"tensors": 0, "parameters": 0, "added": 0}
    if calibration is None:
        each: Iterator[tuple[str, Activations | None]] = _without_text(list(layers), in_place)
    else:
        each = iter(record(teacher, calibration, in_place=in_place, states=states))
    for name, activations in each:
        if name in layers:
            built = _dense_ffn(layers[name], activations, student.config.d_ff, ffn_init, seed)
            own = name if kept is None else renumbered(name, kept)
            for weight, value in built.items():
                whole = student.get_parameter(f"{own}.DenseReluDense.{weight}.weight")
                first_neurons(whole, value.shape).copy_(value)
                counts["tensors"] += 1
                counts["parameters"] += value.numel()
                counts["added"] += whole.numel() - value.numel()
        del activations  # before those of the next layer are recorded
    return counts


def _dense_ffn(
    block: SwitchFeedForward, activations: Activations | None, d_ff: int, ffn_init: str, seed: int
) -> dict[str, torch.Tensor]:
    """The weights of the FFN in place of a Switch layer, with the names and shapes of T5; at most ``d_ff`` neurons."""
    layer = block.mlp
    rows = layer.wi if layer.wi_gate is None else torch.cat([layer.wi, layer.wi_gate], -1)
    experts = FFN(rows.detach().float(), layer.wo.detach().mT.float())
    wi, wo = METHODS[ffn_init](SwitchExperts(experts, layer.activation, activations, d_ff), seed)
    inner, *gate = wi.split(wo.shape[-1], -1)
    weights = {"wi_1": inner, "wi_0": gate[0]} if gate else {"wi": inner}
    return {**weights, "wo": wo.mT}


@torch.no_grad()
def first_neurons(weight: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """A view of ``shape`` of an FFN's matrix: its first neurons. The ``wo`` of the other neurons is set to zero.

    They do not change the function of the FFN, and learn from the first step on, because their ``wi`` is random
    (function-preserving widening, after Net2Net, arXiv:1511.05641, which copies neurons instead).

    Args:
        weight: ``wi`` [neurons, D] or ``wo`` [D, neurons].
        shape: of this matrix with fewer neurons, or as many.
    """
    rows, columns = shape
    weight[:, columns:] = 0
    return weight[:rows, :columns]


def _without_text(names: list[str], in_place: InPlace) -> Iterator[tuple[str, None]]:
    for name in names:
        with in_place(name.partition(".layer.")[0]):
            yield name, None
