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


def test_metrics_of_a_padded_batch_are_those_of_its_tokens(shape, batch):
    """Transformers' forward pass with masks, whose Switch layers get the same padding masks from a hook."""
    model = build_teacher(shape, TeacherConfig(experts=[4], jitter=0.0), 64, 4, pad=0, eos=1, seed=0)
    inputs, labels = batch["input_ids"], batch["labels"]
    inputs[0, 7:], inputs[2, -3:], labels[0, 2:], labels[1, -4:] = 0, 0, -100, -100
    total, metrics = HardLabelsAndLoadBalance(model, load_balancing_weight=0.5)(inputs, labels)
    counted = labels != -100
    masks = {"attention_mask": (inputs != 0).long(), "decoder_attention_mask": counted.long()}
    logits = model(**batch, **masks).logits
    statistics = [layer.statistics for _, layer in switch_layers(model)]
    expected = torch.nn.functional.cross_entropy(logits[counted], labels[counted], reduction="sum")
    balance, tokens = sum(float(one.load_balancing_loss.detach()) for one in statistics), int(counted.sum())
    assert float(metrics["loss"]) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert float(metrics["load_balancing_loss"]) == pytest.approx(balance / 2 * tokens, rel=1e-5)
    assert float(total.detach()) == pytest.approx(float(expected.detach()) + 0.5 * balance * tokens, rel=1e-5)
    entropy = sum(float(one.entropy) for one in statistics) / 2
    assert float(metrics["router_entropy"]) == pytest.approx(entropy * tokens, rel=1e-5)
