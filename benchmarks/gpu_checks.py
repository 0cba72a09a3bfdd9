"""Outputs and gradients on a device, compared with those in float32 on the CPU, at small size.

On a CPU the code of the Switch layer, of the loss and of the memory differs from that on a GPU, so both are compared.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from distill.config import ModelConfig
from distill.loss import SoftLabels, mixed_cross_entropy
from distill.loss_gradient import SparseSoftLabels
from distill.models.build import build_dense
from distill.models.t5_forward import hidden_states
from teachers.build import build_teacher
from teachers.config import SwitchConfig
from teachers.switch_layer import SwitchLayer

Tensors = dict[str, torch.Tensor]
Compute = Callable[[torch.device, bool], Tensors]  # device, and whether bfloat16 autocast is on -> outputs, gradients

_SHAPE = ModelConfig(d_model=64, d_ff=128, d_kv=16, num_heads=4, num_layers=2)
_VOCABULARY_SIZE, _INPUTS, _TARGETS, _EXAMPLES = 512, 64, 32, 8


class Check(NamedTuple):
    """The comparison of one computation."""

    name: str
    precision: str  # "float32" or "bfloat16"
    tolerance: float
    difference: float | None  # the largest of all tensors; None if it is not finite
    tensor: str  # the tensor that has it; or the error

    @property
    def passed(self) -> bool:
        """Whether the difference is known and within the tolerance."""
        return self.difference is not None and self.difference <= self.tolerance

    def facts(self) -> dict[str, Any]:
        """The values for JSON."""
        return {**self._asdict(), "passed": self.passed}


def checks(device: torch.device) -> Iterator[Check]:
    """Compare student, teacher, loss and Switch layer, each in float32 without TF32 and under bfloat16 autocast.

    Float32 on two devices differs by the order of additions alone. In bfloat16 a product differs by up to 2**-8, and a
    token whose two best experts are nearly equal may change its expert in a teacher. The Switch layers alone get equal
    inputs, and their router is computed in float32, so all experts are equal there.
    """
    torch.set_float32_matmul_precision("highest")
    for name, (compute, in_bfloat16) in _CHECKS.items():
        expected = compute(torch.device("cpu"), False)
        for precision, tolerance in (("float32", 1e-4), ("bfloat16", in_bfloat16)):
            try:
                found = compute(device, precision == "bfloat16")
                difference, tensor = max((_difference(expected[key], found[key]), key) for key in expected)
                yield Check(name, precision, tolerance, difference if difference < float("inf") else None, tensor)
            except Exception as error:  # the timings must still run
                yield Check(name, precision, tolerance, None, f"{type(error).__name__}: {error}")


def _difference(expected: torch.Tensor, found: torch.Tensor) -> float:
    """Norm of the difference, relative to the norm of ``expected`` if it is not zero; inf if it is not finite."""
    expected, error = expected.double(), (found.double() - expected.double()).norm()
    relative = float(error / expected.norm()) if expected.any() else float(error)
    return relative if relative == relative else float("inf")


def _model(build: Callable[[], Any]) -> Compute:
    """Last hidden states and all gradients of a model in training mode; one input and one target are padded."""

    def compute(device: torch.device, autocast: bool) -> Tensors:
        model, random = build().train().to(device), torch.Generator().manual_seed(0)
        inputs, labels = (
            torch.randint(3, _VOCABULARY_SIZE, (_EXAMPLES, length), generator=random) for length in (_INPUTS, _TARGETS)
        )
        inputs[0, 40:], labels[1, 20:] = 0, -100
        counted = (labels != -100).flatten().to(device)
        upstream = torch.randn(len(counted), _SHAPE.d_model, generator=random).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            hidden, _ = hidden_states(model, inputs.to(device), labels.to(device))
        (hidden.float() * upstream)[counted].sum().backward()
        return _on_cpu({"output": hidden[counted]}, model)

    return compute


def _switch_layer(experts: int, tokens: int) -> Compute:
    """Output, statistics and gradients of a Switch layer, of which an eighth of the tokens is padding."""

    def compute(device: torch.device, autocast: bool) -> Tensors:
        torch.manual_seed(0)
        layer = SwitchLayer(_SHAPE.d_model, _SHAPE.d_ff, experts, jitter=0.0).to(device)
        hidden, upstream = (torch.randn(1, tokens, _SHAPE.d_model).to(device) for _ in range(2))
        hidden.requires_grad_()
        mask = (torch.arange(tokens) < tokens - tokens // 8)[None].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            output, statistics = layer(hidden, mask)
        ((output.float() * upstream).sum() + statistics.load_balancing_loss).backward()
        assert hidden.grad is not None
        return _on_cpu({"output": output, "hidden.grad": hidden.grad, **statistics._asdict()}, layer)

    return compute


def _loss(kind: str) -> Compute:
    """The mixed loss and its gradients, with "dense" or "sparse" soft labels; some tokens do not count."""

    def compute(device: torch.device, autocast: bool) -> Tensors:
        torch.manual_seed(0)
        n, width, dtype = 96, _SHAPE.d_model, torch.bfloat16 if autocast else torch.float32
        hidden, teacher_hidden = (torch.randn(n, width).to(device) for _ in range(2))
        head, teacher_head = ((torch.randn(_VOCABULARY_SIZE, width) * width**-0.5).to(device) for _ in range(2))
        labels = torch.randint(0, _VOCABULARY_SIZE, (n,)).where(torch.arange(n) % 7 > 0, -100).to(device)
        soft: SoftLabels = (teacher_hidden.to(dtype), teacher_head)
        if kind == "sparse":
            token_ids = torch.rand(n, _VOCABULARY_SIZE).argsort()[:, :16].to(device)
            soft = SparseSoftLabels(token_ids, torch.full_like(token_ids, 1 / 20, dtype=torch.float32), labels * 0.0)
        hidden.requires_grad_(), head.requires_grad_()
        loss, parts = mixed_cross_entropy(hidden.to(dtype), head, labels, soft, temperature=2.0)
        loss.backward()
        assert hidden.grad is not None and head.grad is not None
        return _on_cpu({"loss": loss, **parts._asdict(), "hidden.grad": hidden.grad, "head.grad": head.grad})

    return compute


def _on_cpu(tensors: Tensors, module: torch.nn.Module | None = None) -> Tensors:
    """``tensors`` and the gradients of all parameters of ``module``, on the CPU."""
    parameters = module.named_parameters() if module is not None else ()
    gradients = {f"{name}.grad": one.grad for name, one in parameters if one.grad is not None}
    return {name: value.detach().float().cpu() for name, value in (tensors | gradients).items()}


_CHECKS: dict[str, tuple[Compute, float]] = {  # name -> computation, and its tolerance in bfloat16
    "student": (_model(lambda: build_dense(_SHAPE, _VOCABULARY_SIZE, pad=0, eos=1, seed=0)), 0.15),
    "teacher, 8 experts": (
        _model(lambda: build_teacher(_SHAPE, SwitchConfig(jitter=0.0), _VOCABULARY_SIZE, 8, pad=0, eos=1, seed=0)),
        0.4,
    ),
    "Switch layer, 8 experts, drops tokens": (_switch_layer(8, 128), 0.05),
    "Switch layer, 32 experts, some idle": (_switch_layer(32, 24), 0.05),
    "loss, soft labels of a teacher": (_loss("dense"), 0.02),
    "loss, sparse soft labels": (_loss("sparse"), 0.02),
}
