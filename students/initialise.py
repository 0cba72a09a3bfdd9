"""A dense T5 from a Switch teacher: non-expert weights copied (section 4.2), FFNs of Switch layers fresh or built."""

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
from distill.models.build import count_parameters, embeddings, new_t5
from students.calibration import record
from students.ffn_init import FFN, METHODS, WITHOUT_CALIBRATION, SwitchExperts
from students.weight_map import Skip, student_name
from teachers.model import load_teacher, plain_state_dict, require_teacher, switch_layers


def init_student(
    teacher_or_directory: SwitchTransformersForConditionalGeneration | str | Path,
    *,
    ffn_init: str = "random",
    seed: int = 0,
    calibration: Iterable[Batch] | None = None,
) -> T5ForConditionalGeneration:
    """The student of a teacher: T5-Base (222.9M parameters) for a Switch-Base of any number of experts.

    Args:
        teacher_or_directory: a model of ``teachers.load_teacher``, or a directory or name on the hub that it reads.
        ffn_init: how the FFNs that replace Switch layers are made: "random", T5's own initialisation, or a method of
            ``students.ffn_init``.
        seed: of what is drawn at random.
        calibration: batches of training text, ``input_ids`` [B, S] and ``labels`` [B, T], to measure the experts on;
            "mean" and "svd" also do without, and then leave out the gate.

    Raises:
        UserError: the teacher cannot be loaded.
        ValueError: an unknown ``ffn_init``, or one that needs ``calibration`` without it; or an argument is of another
            type or out of range.
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
    """``init_student``, and how many tensors and parameters were copied, renamed, skipped, built and left fresh.

    A tied tensor is counted once; the counts of the student's side add up to its parameters. Without ``copy`` all of
    it is fresh: the student of the rung "distillation" of table 6.
    """
    if ffn_init not in ("random", *METHODS):
        raise ValueError(f"ffn_init is {ffn_init!r}; use one of 'random', {', '.join(map(repr, METHODS))}")
    if calibration is None and ffn_init not in WITHOUT_CALIBRATION:
        raise ValueError(f"ffn_init {ffn_init!r} needs calibration: batches of training text to measure the experts on")
    require("seed", seed, "a whole number from 0", lambda given: isinstance(given, Integral) and 0 <= given < 2**63)
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
    """The dense T5 of a teacher's dimensions."""
    activation = teacher.dense_act_fn
    if getattr(teacher, "is_gated_act", False):
        activation = "gated-gelu" if activation == "gelu_new" else f"gated-{activation}"
    return T5Config(
        vocab_size=teacher.vocab_size,
        d_model=teacher.d_model,
        d_ff=teacher.d_ff,
        d_kv=teacher.d_kv,
        num_heads=teacher.num_heads,
        num_layers=teacher.num_layers,
        num_decoder_layers=teacher.num_decoder_layers,
        relative_attention_num_buckets=teacher.relative_attention_num_buckets,
        relative_attention_max_distance=teacher.relative_attention_max_distance,
        layer_norm_epsilon=teacher.layer_norm_epsilon,
        dropout_rate=teacher.dropout_rate,
        feed_forward_proj=activation,
        tie_word_embeddings=teacher.tie_word_embeddings,
        pad_token_id=teacher.pad_token_id,
        eos_token_id=teacher.eos_token_id,
        decoder_start_token_id=teacher.decoder_start_token_id,
    )


@torch.no_grad()
def _copy(teacher_state: dict[str, torch.Tensor], student: nn.Module) -> dict[str, dict[str, int]]:
    for name, module in embeddings(student).items() if teacher_state else ():
        if teacher_state[f"{name}.weight"].data_ptr() != teacher_state["shared.weight"].data_ptr():
            module.weight = nn.Parameter(module.weight.clone())  # untied in the teacher, so untied in the student
    targets = student.state_dict()
    plan = {name: student_name(name) for name in teacher_state}  # an unknown name ends it before anything is copied
    tensors: Counter[str] = Counter()
    parameters: Counter[str] = Counter()
    seen: set[int] = set()
    for name, target in plan.items():
        source = teacher_state[name]
        if isinstance(target, Skip):
            fate = f"skipped_{target.reason}"
        else:
            fate = "copied" if target == name else "renamed"
            if target not in targets or targets[target].shape != source.shape:
                found = tuple(targets[target].shape) if target in targets else "none"
                raise UserError(
                    f"teacher tensor {name} has shape {tuple(source.shape)}, the student's {target} {found}; "
                    "the teacher's config does not describe its weights"
                )
            targets[target].copy_(source)
        if source.data_ptr() not in seen:
            seen.add(source.data_ptr())
            tensors[fate] += 1
            parameters[fate] += source.numel()
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
    """Fill the FFNs that replace Switch layers; how many tensors and parameters that were."""
    recorded = {} if calibration is None else record(teacher, calibration)
    tensors = parameters = 0
    for name, block in switch_layers(teacher):
        layer, target = block.mlp, student.get_submodule(name).DenseReluDense
        gated = layer.wi_gate is not None
        rows = torch.cat([layer.wi, layer.wi_gate], -1) if gated else layer.wi
        experts = FFN(rows.detach().float(), layer.wo.detach().mT.float())
        wi, wo = METHODS[ffn_init](SwitchExperts(experts, layer.activation, recorded.get(name)), seed)
        inner, *gate = wi.split(wo.shape[-1], -1)
        weights = {"wi_1": inner, "wi_0": gate[0]} if gated else {"wi": inner}
        for weight, value in {**weights, "wo": wo.mT}.items():
            target.get_submodule(weight).weight.copy_(value)
            tensors, parameters = tensors + 1, parameters + value.numel()
    return {"tensors": tensors, "parameters": parameters}
