"""Initialise a dense T5 from a Switch teacher (section 4.2 of the paper).

The non-expert weights are copied. The FFNs that replace Switch layers are initialised at random ("fresh") or built from
the experts.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from transformers import (
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from distill.arguments import require
from distill.data.examples import Batch
from distill.errors import UserError
from distill.models.build import count_parameters, new_t5
from distill.models.header import EMBEDDINGS
from distill.models.layerwise import InPlace, States, in_memory
from students.build_ffns import build_ffns, first_neurons
from students.ffn_init import METHODS, WITHOUT_CALIBRATION
from students.weight_map import Skip, kept_layers, student_name
from teachers.build import require_teacher
from teachers.load import StoredTeacher, load_teacher, open_non_experts, shared_embeddings
from teachers.save import plain_state_dict

# Keys with the same meaning in the configs of a Switch model and of a T5.
_SHARED = (
    *("vocab_size", "d_model", "d_ff", "d_kv", "num_heads", "num_layers", "num_decoder_layers"),
    *("relative_attention_num_buckets", "relative_attention_max_distance", "layer_norm_epsilon", "dropout_rate"),
    *("tie_word_embeddings", "pad_token_id", "eos_token_id", "decoder_start_token_id"),
)


def init_student(
    teacher_or_directory: SwitchTransformersForConditionalGeneration | str | Path,
    *,
    ffn_init: str = "random",
    seed: int = 0,
    calibration: Iterable[Batch] | None = None,
    d_ff: int | None = None,
    num_decoder_layers: int | None = None,
) -> T5ForConditionalGeneration:
    """Initialise the dense student of a teacher: T5-Base (222.9M parameters) for Switch-Base of any number of experts.

    With ``d_ff`` and ``num_decoder_layers``, it is larger or smaller. Neurons without weights from the teacher do not
    change its function (``students.build_ffns.first_neurons``). ``students.weight_map.kept_layers`` chooses the layers.

    Args:
        teacher_or_directory: a model of ``teachers.load_teacher``, or a directory or a name on the hub that it reads.
            With "random", only the non-expert tensors of a directory or name are read.
        ffn_init: initialisation of the FFNs that replace Switch layers: "random" (T5's own) or the name of a method of
            ``students.ffn_init``.
        seed: seed of all random numbers, from 0.
        calibration: batches of training text, ``input_ids`` [B, S] and ``labels`` [B, T], both int64, on which the
            experts are measured. It is optional for "random" and "mean". Without it, "mean" does not scale by the
            gate.
        d_ff: neurons of every FFN of the student, at least the teacher's; None: the teacher's. "select", "fit" and
            "regress" build all of them from the experts, and the other methods as many as an expert has.
        num_decoder_layers: of the student, at most the teacher's; None: the teacher's.

    Returns:
        The student in float32.

    Raises:
        UserError: the teacher cannot be loaded.
        ValueError: ``ffn_init`` is unknown or needs ``calibration``, or an argument has the wrong type or range.
    """
    return init_student_with_counts(
        teacher_or_directory,
        ffn_init=ffn_init,
        seed=seed,
        calibration=calibration,
        d_ff=d_ff,
        num_decoder_layers=num_decoder_layers,
    )[0]


def init_student_with_counts(
    teacher_or_directory: SwitchTransformersForConditionalGeneration | StoredTeacher | str | Path,
    *,
    ffn_init: str,
    seed: int,
    calibration: Iterable[Batch] | None = None,
    copy: bool = True,
    in_place: InPlace = in_memory,
    states: States | None = None,
    d_ff: int | None = None,
    num_decoder_layers: int | None = None,
) -> tuple[T5ForConditionalGeneration, dict[str, dict[str, int]]]:
    """``init_student`` with counts of the tensors and parameters by origin: copied, renamed, skipped, built, fresh.

    Args:
        teacher_or_directory: as for ``init_student``; with "random" also a result of ``open_teacher``.
        in_place, states: as for ``students.build_ffns.build_ffns``.
        copy: whether to copy the non-expert weights. False leaves them fresh, as in the row "distillation" of table 6.

    Returns:
        The student; and counts under "tensors" and "parameters". A tied tensor is counted once. The copied, renamed,
        built and fresh parameters add up to the student's. A larger ``d_ff`` adds two entries: "widened", the tensors
        and parameters of the teacher's dense FFNs, and "added", the parameters of neurons without weights from the
        teacher. Fewer decoder layers add "skipped_layer"; their routers and experts are counted as such.
    """
    if ffn_init not in ("random", *METHODS):
        raise ValueError(f"ffn_init is {ffn_init!r}; use one of 'random', {', '.join(map(repr, METHODS))}")
    if calibration is None and ffn_init not in WITHOUT_CALIBRATION:
        raise ValueError(f"ffn_init {ffn_init!r} needs calibration: batches of training text to measure the experts on")
    require(
        "seed", seed, "a whole number from 0", lambda given: isinstance(given, Integral) and 0 <= int(given) < 2**63
    )
    given, teacher = teacher_or_directory, None
    if isinstance(given, str | Path):
        given = open_non_experts(str(given)) if ffn_init == "random" else load_teacher(given)
    if isinstance(given, StoredTeacher):
        if ffn_init != "random":
            raise ValueError(f"ffn_init {ffn_init!r} builds FFNs from experts; load the teacher with load_teacher")
        config, weights = given.config, _weights_in_files(given)
    else:
        require_teacher("teacher_or_directory", given)
        teacher, config, weights = given, given.config, _weights_in_memory(given)
    student = new_t5(student_config(config, d_ff=d_ff, num_decoder_layers=num_decoder_layers), seed=seed)
    kept = kept_by(config, student.config)
    counts = _copy(weights, student, kept, config.d_ff) if copy else _with_fresh(student, Counter(), Counter(), set())
    if teacher is not None and ffn_init != "random":
        built = build_ffns(teacher, student, ffn_init, seed, calibration, in_place=in_place, states=states, kept=kept)
        added = built.pop("added")
        counts["parameters"]["fresh"] -= added
        if added:
            counts["parameters"]["added"] = counts["parameters"].get("added", 0) + added
        for kind, number in built.items():
            counts[kind]["fresh"] -= number
            counts[kind]["built"] = number
    return student, counts


def student_config(
    teacher: SwitchTransformersConfig, *, d_ff: int | None = None, num_decoder_layers: int | None = None
) -> T5Config:
    """The config of the dense T5 with a teacher's dimensions.

    Args:
        teacher: the config of the teacher.
        d_ff, num_decoder_layers: of the student if they differ; see ``init_student``.

    Raises:
        ValueError: one of them has the wrong type or range.
    """
    sizes = {name: getattr(teacher, name) for name in _SHARED}
    if d_ff is not None:
        sizes["d_ff"] = _whole("d_ff", d_ff, teacher.d_ff, 2**20)
    if num_decoder_layers is not None:
        most = teacher.num_decoder_layers or teacher.num_layers
        sizes["num_decoder_layers"] = _whole("num_decoder_layers", num_decoder_layers, 1, most)
    activation = teacher.dense_act_fn
    if getattr(teacher, "is_gated_act", False):
        activation = "gated-gelu" if activation == "gelu_new" else f"gated-{activation}"
    return T5Config(**sizes, feed_forward_proj=activation)


def kept_by(teacher: SwitchTransformersConfig, student: T5Config) -> list[int]:
    """The decoder layers of a teacher that its student has kept (``students.weight_map.kept_layers``)."""
    sizes = [config.num_decoder_layers or config.num_layers for config in (teacher, student)]
    return kept_layers(*sizes)


def _whole(name: str, given: int, low: int, high: int) -> int:
    needed = f"None, or a whole number from {low} to {high}"
    require(name, given, needed, lambda value: isinstance(value, Integral) and low <= int(value) <= high)
    return int(given)


class _Weights(NamedTuple):
    """The weights of a teacher in memory or in files, by the names of transformers."""

    shapes: dict[str, tuple[int, ...]]  # experts included
    shared: set[str]  # embeddings that are ``shared.weight``
    read_into: Callable[[str, torch.Tensor], object]  # copies a tensor into one of its shape


def _weights_in_memory(teacher: SwitchTransformersForConditionalGeneration) -> _Weights:
    state = plain_state_dict(teacher)
    pointer = state["shared.weight"].data_ptr()
    shared = {name for name in EMBEDDINGS if state[name].data_ptr() == pointer}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return _Weights(shapes, shared, lambda name, target: target.copy_(state[name]))


def _weights_in_files(stored: StoredTeacher) -> _Weights:
    shapes = {name: tensor.shape for name, tensor in stored.reader.tensors.items()}
    return _Weights(shapes, shared_embeddings(stored), stored.reader.read_into)


def _in_teacher(target: str, shape: Sequence[int], d_ff: int) -> tuple[int, ...]:
    """The shape in the teacher of a tensor of the student, of which only the matrices of FFNs may be larger."""
    if "DenseReluDense" not in target:
        return tuple(shape)
    return (shape[0], d_ff) if target.endswith("wo.weight") else (d_ff, shape[1])


@torch.no_grad()
def _copy(weights: _Weights, student: nn.Module, kept: Sequence[int], d_ff: int) -> dict[str, dict[str, int]]:
    """Copy the non-expert weights into ``student``, one at a time.

    ``kept`` has the decoder layers that it keeps, and ``d_ff`` is the teacher's.
    """
    own = {name: shape for name, shape in weights.shapes.items() if name not in weights.shared}
    for name in EMBEDDINGS:
        if name in own:
            module = student.get_submodule(name.removesuffix(".weight"))
            module.weight = nn.Parameter(student.get_parameter(name).clone())  # as in the teacher
    targets = student.state_dict()
    plan = {name: student_name(name, kept) for name in own}  # an unknown name raises before any copy
    tensors: Counter[str] = Counter()
    parameters: Counter[str] = Counter()
    for name, target in plan.items():
        if isinstance(target, Skip):
            outcome = f"skipped_{target.reason}"
        else:
            outcome = "copied" if target == name else "renamed"
            if target not in targets or own[name] != _in_teacher(target, targets[target].shape, d_ff):
                found = tuple(targets[target].shape) if target in targets else "none"
                raise UserError(
                    f"teacher tensor {name} has shape {own[name]}, the student's {target} {found}; "
                    "the teacher's config does not describe its weights"
                )
            part = targets[target]
            if added := part.numel() - math.prod(own[name]):
                outcome, part = "widened", first_neurons(part, own[name])
                parameters["added"] += added
            weights.read_into(name, part)
            if not targets[target].isfinite().all():
                raise UserError(f"the teacher has weights in {name} that are NaN or infinite; take another checkpoint")
        tensors[outcome] += 1
        parameters[outcome] += math.prod(own[name])
    filled = {targets[target].data_ptr() for target in plan.values() if not isinstance(target, Skip)}
    return _with_fresh(student, tensors, parameters, filled)


def _with_fresh(
    student: nn.Module, tensors: Counter[str], parameters: Counter[str], filled: set[int]
) -> dict[str, dict[str, int]]:
    """The counts with those of the tensors that are not ``filled`` (their pointers)."""
    fresh = {t.data_ptr(): t.numel() for t in student.state_dict().values() if t.data_ptr() not in filled}
    tensors["fresh"], parameters["fresh"] = len(fresh), sum(fresh.values())
    given = sum(parameters[origin] for origin in ("copied", "renamed", "widened", "added", "fresh"))
    assert given == count_parameters(student)
    return {"tensors": dict(tensors), "parameters": dict(parameters)}
