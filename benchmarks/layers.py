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


def loss_step(
    kind: str, num_tokens: int, width: int = WIDTH, vocabulary_size: int = VOCABULARY_SIZE, device: str = "cpu"
) -> Callable[[], None]:
    """Make a step of the mixed loss: forward and backward in bfloat16, at T5-Base size by default.

    Args:
        kind: "ours", "unfused" or "liger". "chunked" is the same as "ours" in a process that returns freed memory to
            the system, so that its memory can be measured.
        num_tokens: number of target tokens.
        width, vocabulary_size: of the head.
        device: of all tensors.
    """
    if kind == "ours":
        make_accelerator("bfloat16")  # as in every run: it also sets how memory is kept between steps
    torch.manual_seed(0)
    with torch.device(device):
        hidden, teacher_hidden = (torch.randn(num_tokens, width).bfloat16() for _ in range(2))
        head, teacher_head = ((torch.randn(vocabulary_size, width) * width**-0.5).bfloat16() for _ in range(2))
        labels = torch.randint(0, vocabulary_size, (num_tokens,))
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


def ffn_step(
    kind: str, experts: int, num_tokens: int, width: int = WIDTH, inner: int = INNER, device: str = "cpu"
) -> Callable[[], None]:
    """Make a step of one FFN or Switch layer: forward and backward in bfloat16, at T5-Base size by default.

    Args:
        kind: "dense" (one FFN), "ours" or "transformers" (Switch layers).
        experts: number of experts of the Switch layer.
        num_tokens: number of tokens of the batch.
        width, inner: d_model and d_ff.
        device: of all tensors.
    """
    if kind != "transformers":
        make_accelerator("bfloat16")
    torch.manual_seed(0)
    with torch.device(device):
        layer = _layer(kind, experts, num_tokens, width, inner).bfloat16().train()
        hidden = torch.randn(1, num_tokens, width).bfloat16().requires_grad_()
        upstream = torch.randn(1, num_tokens, width).bfloat16()

    def step() -> None:
        layer.zero_grad()
        output = layer(hidden)
        (output[0] if isinstance(output, tuple) else output).backward(upstream)

    return step


def _layer(kind: str, experts: int, num_tokens: int, width: int, inner: int) -> nn.Module:
    if kind == "dense":
        return nn.Sequential(nn.Linear(width, inner, bias=False), nn.ReLU(), nn.Linear(inner, width, bias=False))
    if kind == "ours":
        return SwitchLayer(width, inner, experts)
    # Its capacity is a constant per sequence and expert. This value equals a capacity factor of 1.25.
    config = SwitchTransformersConfig(
        d_model=width,
        d_ff=inner,
        num_experts=experts,
        expert_capacity=int(1.25 * num_tokens / experts),
        dropout_rate=0.0,
    )
    return SwitchTransformersSparseMLP(config)


def product_step(side: int = 2048, device: str = "cpu") -> Callable[[], None]:
    """Make a step of one square matrix product in bfloat16, which measures the rate of the processor."""
    left, right = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    return lambda: left @ right
