"""The loss and the Switch layer alone: ours, and what a user would write or install instead."""

from collections.abc import Callable

import torch
from torch import nn
from transformers import SwitchTransformersConfig
from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersSparseMLP

from benchmarks.plain import mixed_loss
from distill.loss import mixed_cross_entropy
from distill.training.loop import make_accelerator
from teachers.switch_layer import SwitchLayer

WIDTH, INNER, WORDS = 768, 3072, 32_128


def loss_step(kind: str, count: int) -> Callable[[], None]:
    """Forward and backward over ``count`` tokens in bfloat16; ``kind``: ours, unfused or liger.

    "chunked" is ours too, in a process whose freed memory goes back to the system, so that it can be measured.
    """
    if kind == "ours":
        make_accelerator("bfloat16")  # as every run of ours does: it settles how memory is kept
    torch.manual_seed(0)
    hidden, teacher_hidden = (torch.randn(count, WIDTH).bfloat16() for _ in range(2))
    head, teacher_head = ((torch.randn(WORDS, WIDTH) * WIDTH**-0.5).bfloat16() for _ in range(2))
    labels = torch.randint(0, WORDS, (count,))
    hidden.requires_grad_(), head.requires_grad_()
    losses = {
        "ours": lambda: mixed_cross_entropy(hidden, head, labels, (teacher_hidden, teacher_head))[0],
        "chunked": lambda: mixed_cross_entropy(hidden, head, labels, (teacher_hidden, teacher_head))[0],
        "unfused": lambda: mixed_loss(hidden @ head.T, teacher_hidden @ teacher_head.T, labels),
    }
    if kind == "liger":
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        # beta 0 is its forward KL; compiled, as is its default.
        liger = LigerFusedLinearJSDLoss(weight_hard_loss=0.75, weight_soft_loss=0.25, beta=0.0)
        losses["liger"] = lambda: liger(hidden, head, teacher_hidden, teacher_head, labels)

    def step() -> None:
        hidden.grad = head.grad = None
        losses[kind]().backward()

    return step


def gradient_bytes(count: int) -> int:
    """Of the gradients of hidden states and head, in bfloat16."""
    return 2 * WIDTH * (count + WORDS)


def ffn_step(kind: str, experts: int, count: int) -> Callable[[], None]:
    """Forward and backward in bfloat16 over ``count`` tokens; ``kind``: dense, ours or transformers."""
    if kind != "transformers":
        make_accelerator("bfloat16")
    torch.manual_seed(0)
    if kind == "dense":
        layer: nn.Module = nn.Sequential(
            nn.Linear(WIDTH, INNER, bias=False), nn.ReLU(), nn.Linear(INNER, WIDTH, bias=False)
        )
    elif kind == "ours":
        layer = SwitchLayer(WIDTH, INNER, experts)
    else:
        # Its capacity is a constant per sequence and expert; this much of it is ours of 1.25 in training.
        config = SwitchTransformersConfig(
            d_model=WIDTH,
            d_ff=INNER,
            num_experts=experts,
            expert_capacity=int(1.25 * count / experts),
            dropout_rate=0.0,
        )
        layer = SwitchTransformersSparseMLP(config)
    layer = layer.bfloat16().train()
    hidden = torch.randn(1, count, WIDTH).bfloat16().requires_grad_()
    upstream = torch.randn(1, count, WIDTH).bfloat16()

    def step() -> None:
        layer.zero_grad()
        output = layer(hidden)
        (output[0] if isinstance(output, tuple) else output).backward(upstream)

    return step


def product_step(side: int = 2048) -> Callable[[], None]:
    """One bfloat16 matrix product: the rate that the machine reaches."""
    left, right = (torch.randn(side, side).bfloat16() for _ in range(2))
    return lambda: left @ right
