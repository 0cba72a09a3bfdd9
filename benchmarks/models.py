"""The steps that are compared: ours, and those of ``benchmarks.plain``, on random tokens and random weights."""

from collections.abc import Callable

import torch
from transformers import (
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from distill.config import ModelConfig, TrainingConfig
from distill.data.cached_labels import LabelledBatch
from distill.data.examples import Batch
from distill.loss import SparseSoftLabels
from distill.model_size import forward_flops
from distill.models.build import build_dense, freeze, place
from distill.training.divergence import NormWatch
from distill.training.loop import make_accelerator, make_optimizer, optimizer_step
from distill.training.train_modules import HardAndCachedLabels, HardAndSoftLabels, HardLabels
from teachers.config import SwitchConfig
from teachers.model import build_teacher

SHAPES = {
    "base": {"d_model": 768, "d_ff": 3072, "d_kv": 64, "num_heads": 12, "num_layers": 12},
    "demo": {"d_model": 64, "d_ff": 256, "d_kv": 32, "num_heads": 2, "num_layers": 2},
}
WORDS = {"base": 32_128, "demo": 1024}
LENGTHS = {"base": (512, 114), "demo": (128, 29)}
EXPERTS = 8


def tokens(size: str, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random inputs [B, S] and labels [B, T]: every arm's batch."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randint(3, 900, (batch, length), generator=generator) for length in LENGTHS[size])


def our_step(
    size: str, batch: int, labels: str, precision: str = "bfloat16", compiled: bool = False
) -> Callable[[], None]:
    """One optimizer step as the training loop takes it; ``labels``: hard, online or cached."""
    accelerator = make_accelerator(precision)
    shape = ModelConfig(**SHAPES[size])
    student = place(build_dense(shape, WORDS[size], pad=0, eos=1, seed=0), accelerator.device)
    inputs, targets = tokens(size, batch)
    mix = {"hard_fraction": 0.75, "temperature": 1.0}
    made: Batch | LabelledBatch = Batch(inputs, targets)
    if labels == "hard":
        objective = HardLabels(student)
    elif labels == "cached":
        objective = HardAndCachedLabels(student, **mix)
        drawn = torch.randint(0, WORDS[size], (targets.numel(), 16))
        soft = SparseSoftLabels(drawn, torch.full(drawn.shape, 1 / 16), torch.zeros(len(drawn)))
        made = LabelledBatch(inputs, targets, soft)
    else:
        teacher = build_teacher(shape, SwitchConfig(), WORDS[size], EXPERTS, pad=0, eos=1, seed=0)
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        objective = HardAndSoftLabels(student, place(freeze(teacher, dtype), accelerator.device), **mix)
    config = TrainingConfig()
    objective, optimizer = accelerator.prepare(objective, make_optimizer(objective, config))
    objective.train()
    watch = NormWatch((), config.gradient_clip)
    if compiled:
        objective = torch.compile(objective)
    return lambda: optimizer_step(objective, optimizer, [made], config, accelerator, watch)


def plain_step(size: str, batch: int, mixed_precision: str) -> Callable[[], None]:
    """The same step in plain transformers; ``mixed_precision`` as accelerate names it."""
    from benchmarks.plain import PlainDistillation

    torch.manual_seed(0)
    shape = {
        **SHAPES[size],
        "num_decoder_layers": SHAPES[size]["num_layers"],
        "vocab_size": WORDS[size],
        "dropout_rate": 0.0,
        "decoder_start_token_id": 0,
    }
    sparse = SHAPES[size]["num_layers"] // 2
    teacher = SwitchTransformersForConditionalGeneration(
        SwitchTransformersConfig(
            **shape, num_experts=EXPERTS, num_sparse_encoder_layers=sparse, num_sparse_decoder_layers=sparse
        )
    )
    loop = PlainDistillation(teacher, T5ForConditionalGeneration(T5Config(**shape)), mixed_precision=mixed_precision)
    batch_of_tokens = tokens(size, batch)
    return lambda: loop.step(*batch_of_tokens)


def step_operations(size: str, batch: int) -> float:
    """Floating-point operations of a distillation step: teacher forward, student forward and twice that backward."""
    shape = {**SHAPES[size], "num_decoder_layers": SHAPES[size]["num_layers"], "vocab_size": WORDS[size]}
    return batch * forward_flops(shape, *LENGTHS[size]) * (1 + 3)
