"""Steps of functions that torch has too: the version of this project, which is kept for its speed, and torch's."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.layers import VOCABULARY_SIZE, WIDTH
from benchmarks.models import EXPERTS, SHAPES
from benchmarks.models import VOCABULARY_SIZE as VOCABULARY_SIZES
from distill.config import ModelConfig
from distill.loss import sum_of_losses
from distill.models.t5_operations import rms_norm
from distill.optim.adafactor import Adafactor
from distill.optim.muon import Muon
from distill.training.loop import make_accelerator
from teachers.build import build_teacher
from teachers.config import SwitchConfig


def optimizer_update(name: str, kind: str) -> Callable[[], None]:
    """Make a step of an optimizer, on a teacher of the small size with random gradients.

    Args:
        name: "adafactor", on all parameters, or "muon", on the matrices of the blocks.
        kind: "ours" or "torch". torch's Muon gets each expert as a separate parameter, because it takes only matrices.
    """
    make_accelerator("bfloat16")
    shape = ModelConfig(**SHAPES["small"])
    model = build_teacher(shape, SwitchConfig(), VOCABULARY_SIZES["small"], EXPERTS, pad=0, eos=1, seed=0)
    parameters = list(model.parameters())
    if name == "muon":
        parameters = [
            parameter
            for key, parameter in model.named_parameters()
            if ".block." in key and parameter.ndim > 1 and "bias" not in key
        ]
    if name == "muon" and kind == "torch":
        matrices = [matrix for weight in parameters for matrix in weight.detach().reshape(-1, *weight.shape[-2:])]
        parameters = [torch.nn.Parameter(matrix.clone()) for matrix in matrices]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizers = {
        ("adafactor", "ours"): lambda: Adafactor(parameters, lr=0.01),
        ("adafactor", "torch"): lambda: torch.optim.Adafactor(parameters, lr=0.01),
        ("muon", "ours"): lambda: Muon([{"params": parameters, "orthogonal": True}], lr=0.01),
        ("muon", "torch"): lambda: torch.optim.Muon(parameters, lr=0.01, adjust_lr_fn="match_rms_adamw"),
    }
    return optimizers[name, kind]().step


def hard_loss_step(
    kind: str, num_tokens: int, width: int = WIDTH, vocabulary_size: int = VOCABULARY_SIZE, device: str = "cpu"
) -> Callable[[], None]:
    """Make a step of the cross-entropy of hard labels: forward and backward in bfloat16, at T5-Base size by default.

    Args:
        kind: "ours" or "torch" (``F.linear_cross_entropy``).
        num_tokens: number of target tokens.
        width, vocabulary_size: of the head.
        device: of all tensors.
    """
    make_accelerator("bfloat16")
    torch.manual_seed(0)
    with torch.device(device):
        hidden = torch.randn(num_tokens, width).bfloat16().requires_grad_()
        head = (torch.randn(vocabulary_size, width) * width**-0.5).bfloat16().requires_grad_()
        labels = torch.randint(0, vocabulary_size, (num_tokens,))
    chunked = torch.nn.LinearCrossEntropyOptions() if kind == "torch" else None  # older versions of torch have none

    def step() -> None:
        hidden.grad = head.grad = None
        if kind == "ours":
            sum_of_losses(hidden, head, labels, None, hard_fraction=1.0).loss.backward()
        else:
            F.linear_cross_entropy(hidden, head, labels, reduction="sum", options=chunked).backward()

    return step


def norm_step(kind: str, num_tokens: int) -> Callable[[], None]:
    """Make a step of T5's layer normalisation: forward and backward, from float32 to bfloat16.

    Args:
        kind: "ours" or "torch" (``torch.nn.RMSNorm``).
        num_tokens: number of tokens of the batch.
    """
    make_accelerator("bfloat16")
    torch.manual_seed(0)
    layer_norm = torch.nn.RMSNorm(WIDTH, eps=1e-6)
    layer_norm.variance_epsilon = layer_norm.eps  # its name in transformers
    x, upstream = torch.randn(num_tokens, WIDTH, requires_grad=True), torch.randn(num_tokens, WIDTH).bfloat16()

    def step() -> None:
        x.grad = layer_norm.weight.grad = None
        y = rms_norm(x, layer_norm, torch.bfloat16) if kind == "ours" else layer_norm(x).bfloat16()
        y.backward(upstream)

    return step
