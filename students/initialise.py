"""Initialise a dense T5 from a Switch teacher (section 4.2 of the paper).

The non-expert weights are copied. The FFNs that replace Switch layers are initialised at random ("fresh") or built from
the experts.
"""

from collections import Counter
from collections.abc import Iterable
from numbers import Integral
from pathlib import Path

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
from distill.models.build import EMBEDDINGS, count_parameters, new_t5
from students.calibration import record
from students.ffn_init import FFN, METHODS, WITHOUT_CALIBRATION, SwitchExperts
from students.weight_map import Skip, student_name
from teachers.build import require_teacher, switch_layers
from teachers.load import load_teacher
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
) -> T5ForConditionalGeneration:
    """Initialise the dense student of a teacher: T5-Base (222.9M parameters) for Switch-Base of any number of experts.

    Args:
        teacher_or_directory: a model of ``teachers.load_teacher``, or a directory or a name on the hub that it reads.
        ffn_init: initialisation of the FFNs that replace Switch layers: "random" (T5's own) or the name of a method of
            ``students.ffn_init``.
        seed: seed of all random numbers, from 0.
        calibration: batches of training text, ``input_ids`` [B, S] and ``labels`` [B, T], both int64, on which the
            experts are measured. It is optional for "random", "mean" and "svd". Without it, "mean" and "svd" do not
            scale by the gate.

    Returns:
        The student in float32.

    Raises:
        UserError: the teacher cannot be loaded.
        ValueError: ``ffn_init`` is unknown or needs ``calibration``, or an argument has the wrong type or range.
    """
    return init_student_with_counts(teacher_or_directory, ffn_init=ffn_init, seed=seed, calibration=calibration)[0]


def init_student_with_counts(
    teacher_or_directory: SwitchTransformersForConditionalGeneration | str | Path,
    *,
    ffn_init: str,
    seed: int,
    calibration: Iterable[Batch] | None = None,
    copy: bool = True,
) -> tuple[T5ForConditionalGeneration, dict[str, dict[str, int]]]:
    """``init_student`` with counts of the tensors and parameters that were copied, renamed, skipped, built and fresh.

    Args:
        copy: whether to copy the non-expert weights. False leaves them fresh, as in the row "distillation" of table 6.

    Returns:
        The student; and counts under "tensors" and "parameters". A tied tensor is counted once. The copied, renamed,
        built and fresh parameters add up to the student's.
    """
    if ffn_init not in ("random", *METHODS):
        raise ValueError(f"ffn_init is {ffn_init!r}; use one of 'random', {', '.join(map(repr, METHODS))}")
    if calibration is None and ffn_init not in WITHOUT_CALIBRATION:
        raise ValueError(f"ffn_init {ffn_init!r} needs calibration: batches of training text to measure the experts on")
    require(
        "seed", seed, "a whole number from 0", lambda given: isinstance(given, Integral) and 0 <= int(given) < 2**63
    )
    teacher = teacher_or_directory
    if isinstance(teacher, str | Path):
        teacher = load_teacher(teacher)
    require_teacher("teacher_or_directory", teacher)
    student = new_t5(student_config(teacher.config), seed=seed)
    counts = _copy(plain_state_dict(teacher) if copy else {}, student)
    if ffn_init != "random":
        built = _build_ffns(teacher, student, ffn_init, seed, calibration)
        for kind, number in built.items():
            counts[kind]["fresh"] -= number
            counts[kind]["built"] = number
    return student, counts


def student_config(teacher: SwitchTransformersConfig) -> T5Config:
    """The config of the dense T5 with a teacher's dimensions."""
    activation = teacher.dense_act_fn
    if getattr(teacher, "is_gated_act", False):
        activation = "gated-gelu" if activation == "gelu_new" else f"gated-{activation}"
    return T5Config(**{name: getattr(teacher, name) for name in _SHARED}, feed_forward_proj=activation)


@torch.no_grad()
def _copy(teacher_state: dict[str, torch.Tensor], student: nn.Module) -> dict[str, dict[str, int]]:
    for name in EMBEDDINGS if teacher_state else ():
        if teacher_state[name].data_ptr() != teacher_state["shared.weight"].data_ptr():
            module = student.get_submodule(name.removesuffix(".weight"))
            module.weight = nn.Parameter(student.get_parameter(name).clone())  # as in the teacher
    targets = student.state_dict()
    plan = {name: student_name(name) for name in teacher_state}  # an unknown name raises before any copy
    tensors: Counter[str] = Counter()
    parameters: Counter[str] = Counter()
    seen: set[int] = set()
    for name, target in plan.items():
        source = teacher_state[name]
        if isinstance(target, Skip):
            outcome = f"skipped_{target.reason}"
        else:
            outcome = "copied" if target == name else "renamed"
            if target not in targets or targets[target].shape != source.shape:
                found = tuple(targets[target].shape) if target in targets else "none"
                raise UserError(
                    f"teacher tensor {name} has shape {tuple(source.shape)}, the student's {target} {found}; "
                    "the teacher's config does not describe its weights"
                )
            targets[target].copy_(source)
        if source.data_ptr() not in seen:
            seen.add(source.data_ptr())
            tensors[outcome] += 1
            parameters[outcome] += source.numel()
    filled = {target for target in plan.values() if not isinstance(target, Skip)}
    filled_pointers = {targets[name].data_ptr() for name in filled}
    fresh = {t.data_ptr(): t.numel() for t in targets.values() if t.data_ptr() not in filled_pointers}
    tensors["fresh"], parameters["fresh"] = len(fresh), sum(fresh.values())
    assert parameters["copied"] + parameters["renamed"] + parameters["fresh"] == count_parameters(student)
    return {"tensors": dict(tensors), "parameters": dict(parameters)}


@torch.no_grad()
def _build_ffns(
    teacher: SwitchTransformersForConditionalGeneration,
    student: T5ForConditionalGeneration,
    ffn_init: str,
    seed: int,
    calibration: Iterable[Batch] | None,
) -> dict[str, int]:
    """Build the FFNs that replace Switch layers. Returns their numbers of tensors and parameters."""
    recorded = {} if calibration is None else record(teacher, calibration)
    tensors = parameters = 0
    for name, block in switch_layers(teacher):
        layer = block.mlp
        rows = layer.wi if layer.wi_gate is None else torch.cat([layer.wi, layer.wi_gate], -1)
        experts = FFN(rows.detach().float(), layer.wo.detach().mT.float())
        wi, wo = METHODS[ffn_init](SwitchExperts(experts, layer.activation, recorded.get(name)), seed)
        inner, *gate = wi.split(wo.shape[-1], -1)
        weights = {"wi_1": inner, "wi_0": gate[0]} if gate else {"wi": inner}
        for weight, value in {**weights, "wo": wo.mT}.items():
            student.get_parameter(f"{name}.DenseReluDense.{weight}.weight").copy_(value)
            tensors, parameters = tensors + 1, parameters + value.numel()
    return {"tensors": tensors, "parameters": parameters}
