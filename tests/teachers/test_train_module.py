import pytest
import torch

from teachers.build import build_teacher, switch_layers
from teachers.config import TeacherConfig
from teachers.train_module import HardLabelsAndLoadBalance


def test_the_objective_adds_one_load_balancing_loss_per_layer(shape, batch):
    model = build_teacher(shape, TeacherConfig(experts=[4], jitter=0.0), 64, 4, pad=0, eos=1, seed=0)
    total, metrics = HardLabelsAndLoadBalance(model, load_balancing_weight=0.5)(**batch)
    balance = sum(layer.statistics.load_balancing_loss.item() for _, layer in switch_layers(model))
    tokens = batch["labels"].numel()
    assert total.item() == pytest.approx(float(metrics["loss"]) + 0.5 * balance * tokens, rel=1e-5)
    assert float(metrics["load_balancing_loss"]) / tokens == pytest.approx(balance / 2, rel=1e-5)
    logits = model(**batch).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
    assert float(metrics["loss"]) / tokens == pytest.approx(float(expected), rel=1e-5)
