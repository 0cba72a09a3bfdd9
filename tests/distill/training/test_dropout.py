"""The dropout of a training acts as that of the model's config, and only during this training."""

import pytest
import torch

from distill.config import TrainingConfig
from distill.data.examples import Examples
from distill.models.build import build_dense
from distill.training.dropout import dropout_of
from distill.training.loop import make_accelerator, train
from distill.training.train_modules import HardLabels
from teachers.build import build_teacher, switch_layers
from teachers.config import SwitchConfig
from teachers.train_module import HardLabelsAndLoadBalance

CONFIG = TrainingConfig(steps=4, batch_size=8, learning_rate=1e-2, warmup_steps=1, checkpoint_every=2)


def dense(shape, rate):
    return build_dense(shape.model_copy(update={"dropout": rate}), 512, pad=0, eos=1, seed=0)


def switch(shape, rate):
    settings = SwitchConfig(expert_dropout=0.4)
    return build_teacher(shape.model_copy(update={"dropout": rate}), settings, 512, 4, pad=0, eos=1, seed=0)


OBJECTIVES = {dense: HardLabels, switch: lambda model: HardLabelsAndLoadBalance(model, load_balancing_weight=0.01)}


def loss(build, model):
    """The loss and the sum of the gradients of a forward pass in training mode."""
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(2)
    inputs, labels = (torch.randint(2, 512, (4, length), generator=generator) for length in (12, 6))
    value = OBJECTIVES[build](model.train())(inputs, labels)[0]
    value.backward()
    gradients = [parameter.grad.sum() for parameter in model.parameters() if parameter.grad is not None]
    return value.item(), sum(gradients).item()


@pytest.mark.parametrize("build", [dense, switch])
@pytest.mark.parametrize("own,rate", [(0.0, 0.3), (0.3, 0.0), (0.1, 0.5)])
def test_the_dropout_of_a_training_replaces_that_of_the_model(shape, build, own, rate):
    model = build(shape, own)
    with dropout_of(model, rate):
        within = loss(build, model)
    model.zero_grad()
    assert within == loss(build, build(shape, rate))
    assert within != loss(build, build(shape, own)) == loss(build, model)


def test_dropout_inside_experts_stays(shape):
    model = switch(shape, 0.1)
    with dropout_of(model, 0.5):
        assert {(layer.mlp.dropout, layer.mlp.expert_dropout) for _, layer in switch_layers(model)} == {(0.5, 0.4)}


@pytest.mark.parametrize("build", [dense, switch])
def test_nothing_remains_changed_after_an_error(shape, build):
    model = build(shape, 0.1)
    before = model.config.to_dict()
    with pytest.raises(KeyboardInterrupt), dropout_of(model, 0.5):
        raise KeyboardInterrupt
    assert model.config.to_dict() == before
    assert {stack.config.dropout_rate for stack in (model, model.encoder, model.decoder)} == {0.1}
    assert loss(build, model) == loss(build, build(shape, 0.1))


@pytest.mark.parametrize("build", [dense, switch])
def test_none_keeps_the_dropout_of_the_model(shape, build):
    model = build(shape, 0.3)
    with dropout_of(model, None):
        assert loss(build, model) == loss(build, build(shape, 0.3))


def test_the_loop_trains_with_it(data, data_config, shape, tmp_path):
    examples, accelerator = Examples(data, data_config, seed=0), make_accelerator("float32")

    def fit(name, own, rate):
        model = build_dense(shape.model_copy(update={"dropout": own}), data.vocab_size, pad=0, eos=1, seed=0)
        config = CONFIG.model_copy(update={"dropout": rate})
        train(HardLabels(model), examples, config, accelerator=accelerator, directory=tmp_path / name, seed=0)
        assert model.config.dropout_rate == own
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    expected, other = fit("a", 0.3, None), fit("b", 0.0, None)
    assert torch.equal(fit("c", 0.0, 0.3), expected)
    assert torch.equal(fit("d", 0.3, 0.0), other) and not torch.equal(expected, other)
