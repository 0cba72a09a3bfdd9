"""Where a training step reads a value of the device, which makes the program wait for a GPU.

No GPU is needed: the step runs on the CPU with the experts' form for a GPU, and its operations are recorded.
"""

import sys
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from accelerate.state import AcceleratorState
from torch.utils._python_dispatch import TorchDispatchMode

import teachers.switch_layer
from distill.config import ModelConfig, TrainingConfig
from distill.data.examples import Batch
from distill.models.build import build_dense
from distill.optim.build import make_optimizer
from distill.training.divergence import NormWatch
from distill.training.loop import make_accelerator
from distill.training.step import optimizer_step
from distill.training.train_modules import HardAndSoftLabels
from teachers.build import build_teacher
from teachers.config import SwitchConfig
from teachers.experts import run_experts
from teachers.train_module import HardLabelsAndLoadBalance

ROOT = Path(__file__).parent.parent.parent
PLACES = (ROOT, ROOT / "distill", ROOT / "tests")  # two folders above the code
READS = {torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select}


class Waits(TorchDispatchMode):
    """The operations whose result or shape the program must read from the device, by function of this project."""

    def __init__(self):
        super().__init__()
        self.functions = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        packet = operation.overloadpacket
        indices = args[1] if packet in (torch.ops.aten.index, torch.ops.aten.index_put_) else ()
        if packet in READS or any(one is not None and one.dtype == torch.bool for one in indices):
            frame = sys._getframe()
            while Path(frame.f_code.co_filename).parent.parent not in PLACES or frame.f_locals.get("self") is self:
                frame = frame.f_back
            self.functions[frame.f_code.co_name] += 1
        return operation(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def own_precision():
    """Reset the precision, which accelerate sets once per process, before and after the test."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def as_on_a_gpu(*args):
    with patch.object(torch.Tensor, "is_cuda", True):
        return run_experts(*args)


def waits_of_a_step(make_objective, layers, experts, padded):
    shape = ModelConfig(d_model=32, d_ff=32, d_kv=16, num_heads=2, num_layers=layers)
    teacher = build_teacher(shape, SwitchConfig(), 64, experts, pad=0, eos=1, seed=0)
    objective = make_objective(teacher, build_dense(shape, 64, pad=0, eos=1, seed=0)).train()
    accelerator, config = make_accelerator("bfloat16"), TrainingConfig()
    prepared, optimizer = accelerator.prepare(objective, make_optimizer(objective, config))
    inputs, labels = torch.randint(2, 64, (4, 24)), torch.randint(2, 64, (4, 8))
    if padded:
        inputs[1, 9:], labels[2, 5:] = 0, -100
    with Waits() as waits:
        optimizer_step(prepared, optimizer, [Batch(inputs, labels)], config, accelerator, NormWatch((), 1.0))
    return waits.functions


def train_teacher(teacher, student):
    return HardLabelsAndLoadBalance(teacher, load_balancing_weight=0.01)


def distil(teacher, student):
    return HardAndSoftLabels(student, teacher, hard_fraction=0.75, temperature=1.0)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("make_objective,models", [(train_teacher, 1), (distil, 2)])
def test_a_step_waits_for_no_layer_and_no_expert(monkeypatch, make_objective, models, padded):
    monkeypatch.setattr(teachers.switch_layer, "run_experts", as_on_a_gpu)
    # Each model asks once whether inputs and once whether labels are padded; then loss and norm are checked.
    expected = {"token_mask": 2 * models, "optimizer_step": 2}
    assert waits_of_a_step(make_objective, 2, 4, padded) == expected
    assert waits_of_a_step(make_objective, 4, 8, padded) == expected


def test_the_form_for_a_cpu_waits_for_its_experts(monkeypatch):
    monkeypatch.setattr("teachers.experts._SMALL", 0)
    assert waits_of_a_step(train_teacher, 2, 4, True)["run_experts"] > 0


def test_waits_are_recorded():
    x = torch.arange(4.0)
    with Waits() as waits:
        for function in (lambda: x[x > 1], lambda: x.sum().item(), lambda: bool(x.any()), lambda: x[torch.tensor([1])]):
            function()
    assert waits.functions == {"<lambda>": 3}
