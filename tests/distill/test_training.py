import math

import numpy as np
import pytest
import torch

from distill.checkpoint import checkpoints
from distill.config import TrainingConfig
from distill.data import Batch, Examples
from distill.errors import UserError
from distill.objectives import HardAndSoftLabels, HardLabels
from distill.seq2seq import build_dense
from distill.training import Hooks, TrainingDiverged, learning_rate, make_accelerator, train, trunk_steps

CONFIG = TrainingConfig(steps=6, batch_size=8, learning_rate=1e-2, warmup_steps=2, log_every=1, checkpoint_every=2)


@pytest.fixture(scope="module")
def accelerator():
    return make_accelerator("float32")


@pytest.fixture
def dense(shape, data):
    def make(**changes):
        return build_dense(shape.model_copy(update=changes), data.vocab_size, pad=0, eos=1, seed=0)

    return make


@pytest.fixture
def examples(data, data_config):
    return Examples(data, data_config, seed=0)


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def fit(model, examples, tmp_path, accelerator, config=CONFIG, objective=HardLabels, **arguments):
    train(objective(model), examples, config, accelerator=accelerator, directory=tmp_path, seed=0, **arguments)
    return weights(model)


def test_loss_falls_and_metrics_arrive(dense, examples, tmp_path, accelerator):
    seen = {}
    config = CONFIG.model_copy(update={"steps": 30})
    fit(dense(), examples, tmp_path, accelerator, config, hooks=Hooks(on_metrics=lambda s, m: seen.update({s: m})))
    assert sorted(seen) == list(range(1, 31))
    assert seen[30]["loss"] < seen[1]["loss"] - 0.5
    assert seen[30]["tokens_per_second"] > 0


class Padded:
    """Examples whose targets are cut to different lengths, so that micro-batches have unequal token counts."""

    def __init__(self, examples):
        self.examples = examples

    def batch(self, indices):
        inputs, labels = self.examples.batch(indices)
        for row, index in enumerate(indices):
            labels[row, 2 + index % 5 :] = -100
        return Batch(inputs, labels)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_micro_batches_equal_one_batch(dense, examples, tmp_path, accelerator, optimizer):
    whole = CONFIG.model_copy(update={"optimizer": optimizer, "steps": 4})
    micro = whole.model_copy(update={"micro_batch_size": 2})
    one = fit(dense(), Padded(examples), tmp_path / "a", accelerator, whole)
    four = fit(dense(), Padded(examples), tmp_path / "b", accelerator, micro)
    torch.testing.assert_close(one, four, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(one, weights(dense()), atol=1e-3)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("stop", [2, 3, 5])
def test_an_interrupted_run_ends_with_the_same_bits(dense, examples, tmp_path, accelerator, optimizer, stop):
    config = CONFIG.model_copy(update={"optimizer": optimizer})
    straight = fit(dense(dropout=0.1), examples, tmp_path / "a", accelerator, config)

    class Killed(Exception):
        pass

    def die(step, total, metrics):
        if step == stop:
            raise Killed

    with pytest.raises(Killed):
        fit(dense(dropout=0.1), examples, tmp_path / "b", accelerator, config, hooks=Hooks(on_step=die))
    saved = checkpoints(tmp_path / "b")
    assert [path.name for path in saved] == ([f"step-{stop // 2 * 2:08d}"] if stop > 2 else [])
    resumed = fit(dense(dropout=0.1), examples, tmp_path / "b", accelerator, config)
    assert torch.equal(straight, resumed)


def test_divergence_stops_and_keeps_the_last_checkpoint(dense, examples, tmp_path, accelerator):
    class Bad(HardLabels):
        steps = 0

        def forward(self, input_ids, labels):
            loss, metrics = super().forward(input_ids, labels)
            self.steps += 1
            factor = float("nan") if self.steps == 4 else 1.0
            return loss * factor, {"loss": metrics["loss"] * factor}

    model = dense()
    with pytest.raises(TrainingDiverged, match="stopped at step 4: loss nan.*Lower learning_rate"):
        fit(model, examples, tmp_path, accelerator, objective=Bad)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000002"]
    assert weights(model).isfinite().all()


def test_distillation_trains_the_student_alone(dense, examples, tmp_path, accelerator):
    teacher, student = dense(), dense()
    before = weights(teacher)
    seen = {}

    def objective(model):
        return HardAndSoftLabels(model, teacher, hard_fraction=0.75, temperature=1.0)

    hooks = Hooks(on_metrics=lambda step, metrics: seen.update({step: metrics}))
    after = fit(student, examples, tmp_path, accelerator, objective=objective, hooks=hooks)
    assert torch.equal(weights(teacher), before) and not torch.equal(after, before)
    assert not any(parameter.requires_grad for parameter in teacher.parameters()) and not teacher.training
    first = seen[1]
    assert first["kl"] == pytest.approx(0, abs=1e-5) and seen[6]["kl"] > 0  # they began as equals
    assert first["loss"] == pytest.approx(0.75 * first["hard_loss"] + 0.25 * first["soft_loss"], rel=1e-5)


def test_no_example_is_read_twice_in_an_epoch(examples, accelerator, dense, tmp_path):
    read = []

    class Spy:
        def batch(self, indices):
            read.extend(indices)
            return examples.batch(indices)

    fit(dense(), Spy(), tmp_path, accelerator, CONFIG.model_copy(update={"micro_batch_size": 4}))
    assert read == list(range(6 * 8))


def test_learning_rates():
    config = TrainingConfig(steps=100, learning_rate=1.0, warmup_steps=10)
    assert learning_rate(config, 0, 100) == pytest.approx(0.1)
    assert learning_rate(config, 9, 100) == pytest.approx(1.0)
    assert learning_rate(config, 40, 100) == pytest.approx(0.5)
    cooled = config.model_copy(update={"cooldown": 0.2})
    assert trunk_steps(cooled, 100) == 80
    assert [learning_rate(cooled, s, 100) for s in range(80)] == [learning_rate(cooled, s, 200) for s in range(80)]
    last = [learning_rate(cooled, s, 100) for s in range(79, 100)]
    assert last == sorted(last, reverse=True) and 0 < last[-1] < 0.02
    steps = [last[i] - last[i + 1] for i in range(1, 20)]
    assert max(steps) == pytest.approx(min(steps))
    straight = config.model_copy(update={"cooldown": 1.0})
    assert trunk_steps(straight, 100) == 10
    falling = [learning_rate(straight, s, 100) for s in range(9, 100)] + [0.0]
    assert np.diff(falling) == pytest.approx(-1 / 91)
    cosine = config.model_copy(update={"schedule": "cosine"})
    assert learning_rate(cosine, 55, 100) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.5)))
    assert trunk_steps(cosine, 100) == 10


def test_a_trunk_and_its_branches_equal_separate_runs(dense, examples, tmp_path, accelerator):
    """Two lengths from one trunk: what makes the baseline's two measurements one run."""
    config = CONFIG.model_copy(update={"cooldown": 0.5})
    whole = fit(dense(), examples, tmp_path / "whole", accelerator, config)
    model = dense()
    fit(model, examples, tmp_path / "trunk", accelerator, config, steps=20, stop=trunk_steps(config, 6))
    start = checkpoints(tmp_path / "trunk")[-1]
    branch = fit(model, examples, tmp_path / "branch", accelerator, config, start=start)
    assert torch.equal(whole, branch)


@pytest.mark.parametrize("cooldown", [0.5, 1.0])
def test_a_trunk_of_any_length_is_where_branches_begin(dense, examples, tmp_path, accelerator, cooldown):
    """Also one of no steps: the branch must not go on from whatever the model was trained to in between."""
    config = CONFIG.model_copy(update={"cooldown": cooldown, "warmup_steps": 0})
    whole = fit(dense(), examples, tmp_path / "whole", accelerator, config)
    model = dense()
    fit(model, examples, tmp_path / "trunk", accelerator, config, steps=20, stop=trunk_steps(config, 6))
    start = checkpoints(tmp_path / "trunk")[-1]
    fit(model, examples, tmp_path / "other", accelerator, config, start=start, steps=9)
    assert torch.equal(whole, fit(model, examples, tmp_path / "branch", accelerator, config, start=start))


def test_position_biases_and_norms_are_not_decayed(dense, examples, tmp_path, accelerator):
    before = dense()
    config = CONFIG.model_copy(update={"steps": 3, "learning_rate": 1e-3, "weight_decay": 900.0, "warmup_steps": 0})
    after = dense()
    fit(after, examples, tmp_path, accelerator, config)
    for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        kept = float(new.detach().norm() / old.detach().norm())
        assert (kept > 0.9) == ("layer_norm" in name or "relative_attention_bias" in name), name


def test_a_batch_that_cannot_be_shared_is_refused(dense, examples, tmp_path, accelerator):
    with pytest.raises(UserError, match="batch_size 8 cannot be shared"):
        fit(dense(), examples, tmp_path, accelerator, CONFIG.model_copy(update={"micro_batch_size": 3}))


def test_gradient_accumulation_of_the_environment_is_not_applied_twice(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert make_accelerator("float32").gradient_accumulation_steps == 1
