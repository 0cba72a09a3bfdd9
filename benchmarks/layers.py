"""Steps of the loss and of the Switch layer alone: those of this project, and the alternatives of a user."""

from collections.abc import Callable

import torch
from torch import nn
from transformers import SwitchTransformersConfig
from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersSparseMLP

from benchmarks.plain import mixed_loss
from distill.loss import mixed_cross_entropy
from distill.training.loop import make_accelerator
from teachers.switch_layer import SwitchLayer

WIDTH, INNER, VOCABULARY_SIZE = 768, 3072, 32_128


def loss_step(kind: str, num_tokens: int) -> Callable[[], None]:
    """Make a step of the mixed loss: forward and backward in bfloat16, at T5-Base size.

    Args:
        kind: "ours", "unfused" or "liger". "chunked" is the same as "ours" in a process that returns freed memory to
            the system, so that its memory can be measured.
        num_tokens: number of target tokens.
    """
    if kind == "ours":
        make_accelerator("bfloat16")  # as in every run: it also sets how memory is kept between steps
    torch.manual_seed(0)
    hidden, teacher_hidden = (torch.randn(num_tokens, WIDTH).bfloat16() for _ in range(2))
    head, teacher_head = ((torch.randn(VOCABULARY_SIZE, WIDTH) * WIDTH**-0.5).bfloat16() for _ in range(2))
    labels = torch.randint(0, VOCABULARY_SIZE, (num_tokens,))
    hidden.requires_grad_(), head.requires_grad_()
    losses = {
        "ours": lambda: mixed_cross_entropy(hidden, head, labels, (teacher_hidden, teacher_head))[0],
        "chunked": lambda: mixed_cross_entropy(hidden, head, labels, (teacher_hidden, teacher_head))[0],
        "unfused": lambda: mixed_loss(hidden @ head.T, teacher_hidden @ teacher_head.T, labels),
    }
    if kind == "liger":
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        # beta=0 is the forward KL divergence.
        liger = LigerFusedLinearJSDLoss(weight_hard_loss=0.75, weight_soft_loss=0.25, beta=0.0)
        losses["liger"] = lambda: liger(hidden, head, teacher_hidden, teacher_head, labels)

    def step() -> None:
        hidden.grad = head.grad = None
        losses[kind]().backward()

    return step


def gradient_bytes(num_tokens: int) -> int:
    """Size of the gradients of hidden states and head, in bfloat16."""
    return 2 * WIDTH * (num_tokens + VOCABULARY_SIZE)


def ffn_step(kind: str, experts: int, num_tokens: int) -> Callable[[], None]:
    """Make a step of one FFN or Switch layer: forward and backward in bfloat16, at T5-Base size.

    Args:
        kind: "dense" (one FFN), "ours" or "transformers" (Switch layers).
        experts: number of experts of the Switch layer.
        num_tokens: number of tokens of the batch.
    """
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
        # Its capacity is a constant per sequence and expert. This value equals a capacity factor of 1.25.
        config = SwitchTransformersConfig(
            d_model=WIDTH,
            d_ff=INNER,
            num_experts=experts,
            expert_capacity=int(1.25 * num_tokens / experts),
            dropout_rate=0.0,
        )
        layer = SwitchTransformersSparseMLP(config)
    layer = layer.bfloat16().train()
    hidden = torch.randn(1, num_tokens, WIDTH).bfloat16().requires_grad_()
    upstream = torch.randn(1, num_tokens, WIDTH).bfloat16()

    def step() -> None:
        layer.zero_grad()
        output = layer(hidden)
        (output[0] if isinstance(output, tuple) else output).backward(upstream)

    return step


def product_step(side: int = 2048) -> Callable[[], None]:
    """Make a step of one square matrix product in bfloat16, which measures the rate of the processor."""
    left, right = (torch.randn(side, side).bfloat16() for _ in range(2))
    return lambda: left @ right
