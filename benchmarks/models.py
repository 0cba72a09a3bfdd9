"""Optimizer steps of this project and of ``benchmarks.plain``, on random tokens and random weights.

Sizes are "base" (T5-Base) and "small". A teacher has 8 experts unless the caller says otherwise.
"""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from transformers import (
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from distill.config import ModelConfig, TrainingConfig
from distill.data.cached_labels import LabelledBatch
from distill.data.examples import Batch
from distill.loss_gradient import SparseSoftLabels
from distill.model_size import forward_flops
from distill.models.build import build_dense, freeze, place
from distill.optim.build import make_optimizer
from distill.training.divergence import NormWatch
from distill.training.loop import make_accelerator, optimizer_step
from distill.training.train_modules import HardAndCachedLabels, HardAndSoftLabels, HardLabels
from teachers.build import build_teacher
from teachers.config import SwitchConfig

SHAPES = {
    "base": {"d_model": 768, "d_ff": 3072, "d_kv": 64, "num_heads": 12, "num_layers": 12},
    "small": {"d_model": 64, "d_ff": 256, "d_kv": 32, "num_heads": 2, "num_layers": 2},
}
VOCABULARY_SIZE = {"base": 32_128, "small": 1024}
LENGTHS = {"base": (512, 114), "small": (128, 29)}  # tokens of an input, and of its targets
EXPERTS = 8


def tokens(size: str, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random inputs [B, S] and labels [B, T]. All steps of a size and batch size get the same tokens."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randint(3, 900, (batch, length), generator=generator) for length in LENGTHS[size])


def our_step(size: str, batch: int, labels: str, compiled: bool = False, experts: int = EXPERTS) -> Callable[[], None]:
    """Make an optimizer step of this project's training loop, on accelerate's device.

    Args:
        size: "base" or "small".
        batch: number of examples.
        labels: "hard" (hard labels alone), "online" (hard labels and a teacher) or "cached" (hard and cached labels).
        compiled: whether to apply ``torch.compile``.
        experts: of the teacher.
    """
    accelerator = make_accelerator("bfloat16")
    shape = ModelConfig(**SHAPES[size])
    with accelerator.device:  # random weights of a large teacher would take long on a CPU
        student = place(build_dense(shape, VOCABULARY_SIZE[size], pad=0, eos=1, seed=0), accelerator.device)
    inputs, targets = tokens(size, batch)
    mix = {"hard_fraction": 0.75, "temperature": 1.0}
    examples: Batch | LabelledBatch = Batch(inputs, targets)
    if labels == "hard":
        objective = HardLabels(student)
    elif labels == "cached":
        objective = HardAndCachedLabels(student, **mix)
        token_ids = torch.randint(0, VOCABULARY_SIZE[size], (targets.numel(), 16))
        soft = SparseSoftLabels(token_ids, torch.full(token_ids.shape, 1 / 16), torch.zeros(len(token_ids)))
        examples = LabelledBatch(inputs, targets, soft)
    else:
        objective = HardAndSoftLabels(student, frozen_teacher(size, experts, accelerator.device), **mix)
    config = TrainingConfig()
    objective, optimizer = accelerator.prepare(objective, make_optimizer(objective, config))
    objective.train()
    watch = NormWatch((), config.gradient_clip)
    if compiled:
        objective = torch.compile(objective)
    examples = examples.to(accelerator.device)
    return lambda: optimizer_step(objective, optimizer, [examples], config, accelerator, watch)


def frozen_teacher(size: str, experts: int, device: torch.device) -> SwitchTransformersForConditionalGeneration:
    """A teacher of random weights on ``device``, with the matrices of its products in bfloat16."""
    shape = ModelConfig(**SHAPES[size])
    with device:
        teacher = build_teacher(shape, SwitchConfig(), VOCABULARY_SIZE[size], experts, pad=0, eos=1, seed=0)
    return place(freeze(teacher, torch.bfloat16), device)


def plain_step(size: str, batch: int, mixed_precision: str, experts: int = EXPERTS) -> Callable[[], None]:
    """Make a step of ``benchmarks.plain`` with the same models as ``our_step`` has with online labels.

    Args:
        size: "base" or "small".
        batch: number of examples.
        mixed_precision: of accelerate, for example "bf16" or "no".
        experts: of the teacher.
    """
    from benchmarks.plain import PlainDistillation

    torch.manual_seed(0)
    shape = {
        **SHAPES[size],
        "num_decoder_layers": SHAPES[size]["num_layers"],
        "vocab_size": VOCABULARY_SIZE[size],
        "dropout_rate": 0.0,
        "decoder_start_token_id": 0,
    }
    sparse = SHAPES[size]["num_layers"] // 2
    with Accelerator(mixed_precision=mixed_precision).device as device:
        teacher = SwitchTransformersForConditionalGeneration(
            SwitchTransformersConfig(
                **shape, num_experts=experts, num_sparse_encoder_layers=sparse, num_sparse_decoder_layers=sparse
            )
        )
        student = T5ForConditionalGeneration(T5Config(**shape))
    loop = PlainDistillation(teacher, student, mixed_precision=mixed_precision)
    batch_of_tokens = [part.to(device) for part in tokens(size, batch)]
    return lambda: loop.step(*batch_of_tokens)


def step_operations(size: str, batch: int) -> float:
    """Floating-point operations of a distillation step.

    These are the forward passes of teacher and student, and twice a forward pass for the backward pass of the student.
    """
    shape = {**SHAPES[size], "num_decoder_layers": SHAPES[size]["num_layers"], "vocab_size": VOCABULARY_SIZE[size]}
    return batch * forward_flops(shape, *LENGTHS[size]) * (1 + 3)
