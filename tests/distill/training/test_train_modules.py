"""The terms of the loss and their schedules, inside and outside the training loop."""

import numpy as np
import pytest
import torch

from distill.config import DistillConfig, TrainingConfig
from distill.data.examples import Batch, Examples
from distill.models.build import build_dense
from distill.training.checkpoint import checkpoints
from distill.training.loop import Hooks, make_accelerator, train
from distill.training.train_modules import HardAndSoftLabels, HardLabels
from teachers.build import build_teacher, switch_layers
from teachers.config import SwitchConfig

CONFIG = TrainingConfig(steps=6, batch_size=8, learning_rate=1e-2, warmup_steps=2, log_every=1, checkpoint_every=2)
MIX = {"hard_fraction": 0.75, "temperature": 1.0}


@pytest.fixture(scope="module")
def accelerator():
    return make_accelerator("float32")


@pytest.fixture
def teacher(shape, data):
    return build_teacher(shape, SwitchConfig(), data.vocab_size, 4, pad=0, eos=1, seed=1)


@pytest.fixture
def student(shape, data):
    return build_dense(shape.model_copy(update={"dropout": 0.1}), data.vocab_size, pad=0, eos=1, seed=0)


@pytest.fixture
def examples(data, data_config):
    return Examples(data, data_config, seed=0)


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def fit(objective, examples, directory, accelerator, config=CONFIG, on_step=lambda *_: None):
    """The metrics of every logged step."""
    seen = {}
    hooks = Hooks(on_step=on_step, on_metrics=lambda step, metrics: seen.update({step: metrics}))
    train(objective, examples, config, accelerator=accelerator, directory=directory, seed=0, hooks=hooks)
    return seen


def test_the_parts_add_up_and_are_logged(student, teacher, examples, tmp_path, accelerator):
    objective = HardAndSoftLabels(student, teacher, **MIX)
    seen = fit(objective, examples, tmp_path, accelerator)
    assert list(seen) == [1, 2, 3, 4, 5, 6]
    for metrics in seen.values():
        expected = 0.75 * metrics["hard_loss"] + 0.25 * metrics["soft_loss"]
        assert metrics["loss"] == pytest.approx(expected, rel=1e-5)


def test_the_balance_by_token_weighs_labels_by_the_teachers_probability(student, teacher, examples):
    batch = examples.batch(range(3))
    with torch.no_grad():
        logits = [model.eval()(input_ids=batch.input_ids, labels=batch.labels).logits for model in (student, teacher)]
        loss, metrics = HardAndSoftLabels(student, teacher, **MIX, balance="by-token")(*batch)
    counted = batch.labels != -100
    q, p = (one[counted].log_softmax(-1) for one in logits)
    right = p.exp().gather(-1, batch.labels[counted][:, None])[:, 0]
    hard, soft = -q.gather(-1, batch.labels[counted][:, None])[:, 0], -(p.exp() * q).sum(-1)
    torch.testing.assert_close(loss, ((1 - right) * hard + right * soft).sum(), rtol=1e-5, atol=0)
    torch.testing.assert_close(metrics["hard_loss"], hard.sum(), rtol=1e-5, atol=0)


def test_soft_labels_start_at_their_step(student, teacher, examples, tmp_path, accelerator):
    objective = HardAndSoftLabels(student, teacher, **MIX, soft_start=2)
    seen = fit(objective, examples, tmp_path, accelerator)
    assert [step for step in seen if "soft_loss" in seen[step]] == [3, 4, 5, 6]
    for step in (1, 2):
        assert seen[step]["loss"] == pytest.approx(seen[step]["hard_loss"]) and "kl" not in seen[step]
    for step in (3, 6):
        mixed = 0.75 * seen[step]["hard_loss"] + 0.25 * seen[step]["soft_loss"]
        assert seen[step]["loss"] == pytest.approx(mixed, rel=1e-5)


def test_the_steps_before_are_those_of_hard_labels_alone(shape, data, teacher, examples, tmp_path, accelerator):
    config, ends = CONFIG.model_copy(update={"steps": 3}), []
    for name in ("hard", "soft"):
        model = build_dense(shape, data.vocab_size, pad=0, eos=1, seed=0)
        objective = HardLabels(model) if name == "hard" else HardAndSoftLabels(model, teacher, **MIX, soft_start=3)
        fit(objective, examples, tmp_path / name, accelerator, config)
        ends.append(weights(model))
    assert torch.equal(*ends)


def test_the_teacher_runs_only_when_it_is_read(student, teacher, examples):
    calls = []
    for _, layer in switch_layers(teacher):
        layer.mlp.register_forward_hook(lambda *_: calls.append(1))
    settings = {"training": TrainingConfig(steps=3, batch_size=4, warmup_steps=1)}
    for hard_fraction, expected in ((1.0, [False, False, False]), (0.75, [False, False, True])):
        mix, ran = {"hard_fraction": hard_fraction, "soft_start": 2}, []
        objective = HardAndSoftLabels(student, teacher, temperature=1.0, **mix)
        for objective.step in range(3):
            calls.clear()
            _, metrics = objective(*examples.batch(range(4)))
            ran.append(bool(calls))
            assert ("soft_loss" in metrics) == ran[-1]
        assert ran == expected
        for steps in range(1, 4):  # fewer than 3 after early stopping
            assert DistillConfig(**mix, **settings).num_teacher_examples(steps) == 4 * sum(ran[:steps])
    assert DistillConfig(hard_fraction=1.0, **settings).num_teacher_examples(3) == 0
    assert DistillConfig(soft_labels="cached", **settings).num_teacher_examples(2) == 12  # before the training


@pytest.mark.parametrize("stop", [3, 5])
def test_an_interrupted_run_repeats_its_draws_and_schedules(
    shape, data, teacher, examples, tmp_path, accelerator, stop
):
    """Dropout in the student, and soft labels from step 3."""

    class Killed(Exception):
        pass

    def die(step, total, metrics):
        if step == stop:
            raise Killed

    def new():
        model = build_dense(shape.model_copy(update={"dropout": 0.1}), data.vocab_size, pad=0, eos=1, seed=0)
        return HardAndSoftLabels(model, teacher, **MIX, soft_start=3)

    config = CONFIG.model_copy(update={"micro_batch_size": 4})
    straight = new()
    curves = fit(straight, examples, tmp_path / "a", accelerator, config)
    with pytest.raises(Killed):
        fit(new(), examples, tmp_path / "b", accelerator, config, on_step=die)
    assert len(checkpoints(tmp_path / "b")) == (stop - 1) // 2
    resumed = new()
    again = fit(resumed, examples, tmp_path / "b", accelerator, config)
    assert torch.equal(weights(straight.model), weights(resumed.model))
    for step in again:
        for name in curves[step].keys() - {"tokens_per_second"}:
            assert again[step][name] == curves[step][name]


def test_a_part_that_begins_within_a_logged_window_is_averaged_over_its_own_steps(
    shape, data, teacher, examples, tmp_path, accelerator
):
    curves = []
    for log_every in (1, 4):
        model = build_dense(shape, data.vocab_size, pad=0, eos=1, seed=0)
        objective = HardAndSoftLabels(model, teacher, **MIX, soft_start=2)
        config = CONFIG.model_copy(update={"log_every": log_every, "steps": 4})
        curves.append(fit(objective, examples, tmp_path / str(log_every), accelerator, config))
    each, window = curves[0], curves[1][4]
    assert window["soft_loss"] == pytest.approx(np.mean([each[step]["soft_loss"] for step in (3, 4)]), rel=1e-5)
    assert window["loss"] == pytest.approx(np.mean([each[step]["loss"] for step in (1, 2, 3, 4)]), rel=1e-5)


def test_padding_changes_neither_loss_nor_gradient(student, teacher, examples):
    for _, layer in switch_layers(teacher):
        layer.mlp.drops_tokens = False  # with a limited capacity, padding could displace other tokens
    objective = HardAndSoftLabels(student.eval(), teacher, **MIX)
    inputs, labels = examples.batch(range(4))
    found = []
    for padding in (0, 7):
        student.zero_grad()
        batch = Batch(inputs, torch.cat([labels, torch.full((4, padding), -100)], dim=1))
        loss, metrics = objective(*batch)
        loss.backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in student.parameters()])
        found.append((gradient, torch.stack([metrics[name] for name in sorted(metrics)])))
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-5, atol=1e-4)
    assert (found[0][0] - found[1][0]).norm() < 1e-5 * found[0][0].norm()
