import pytest
import torch

from distill.config import ModelConfig, TrainingConfig
from distill.models.build import build_dense
from distill.optim.build import make_optimizer
from distill.training.train_modules import HardLabels
from teachers.build import build_teacher
from teachers.config import SwitchConfig

SHAPE = ModelConfig(d_model=16, d_ff=32, d_kv=8, num_heads=2, num_layers=2)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "muon"])
def test_position_biases_and_norms_are_not_decayed(optimizer):
    model = build_dense(SHAPE, 64, pad=0, eos=1, seed=0)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    config = TrainingConfig(optimizer=optimizer, learning_rate=1e-3, weight_decay=100.0)
    updates = make_optimizer(HardLabels(model), config)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)  # so that only weight decay changes parameters
    updates.step()
    for name, weight in model.named_parameters():
        kept = 1.0 if "layer_norm" in name or "relative_attention_bias" in name else 1 - 1e-3 * 100.0
        torch.testing.assert_close(weight, kept * before[name], msg=name)


def test_of_a_teacher_muon_moves_the_matrices_of_its_blocks_but_the_router():
    model = build_teacher(SHAPE, SwitchConfig(), 64, 4, pad=0, eos=1, seed=0)
    optimizer = make_optimizer(HardLabels(model), TrainingConfig(optimizer="muon"))
    moved = {id(parameter) for group in optimizer.param_groups if group["orthogonal"] for parameter in group["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in moved}
    attention = {f"{part}.weight" for part in ("q", "k", "v", "o")}
    expected = {
        name
        for name, parameter in model.named_parameters()
        if ".".join(name.split(".")[-2:]) in {*attention, "wi.weight", "wo.weight", "mlp.wi", "mlp.wo"}
    }
    assert names == expected and len(names) == 2 * 4 + 2 * 8 + 4 * 2
    everything = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(everything) == len(list(model.parameters()))
