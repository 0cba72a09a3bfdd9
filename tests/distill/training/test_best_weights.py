"""Early stopping: its record alone, and in the training loop, also of runs that are killed."""

import json
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from distill.config import TrainingConfig
from distill.data.examples import Examples
from distill.errors import DiskFull, UserError
from distill.models.build import build_dense
from distill.training.best_weights import BestWeights
from distill.training.checkpoint import checkpoints
from distill.training.loop import Hooks, make_accelerator, train
from distill.training.train_modules import HardLabels
from tests.damage import damage

CONFIG = TrainingConfig(
    steps=12, batch_size=8, learning_rate=1e-2, warmup_steps=2, evaluate_every=2, checkpoint_every=3, patience=2
)
QUALITIES = {2: -3.0, 4: -1.0, 6: -2.0, 8: -1.5, 10: 0.0, 12: 0.0}  # the best one before the stop is at step 4


def exhausted(qualities, patience, step):
    """Whether the last ``patience`` values up to ``step`` are not better than all before, in plain Python."""
    known = [quality for one, quality in sorted(qualities.items()) if one <= step]
    best, since = -float("inf"), 0
    for quality in known:
        best, since = (quality, 0) if quality > best else (best, since + 1)
    return bool(known) and since >= patience


@pytest.mark.parametrize("patience", [1, 2, 3])
@pytest.mark.parametrize(
    "values", [[1, 2, 3, 4], [4, 3, 2, 1], [1, 3, 2, 2, 4, 1, 1, 1], [1, 1, 1, 1], [-1, -2, 0, -3]]
)
def test_the_state_at_a_step_depends_on_the_evaluations_up_to_it(tmp_path, patience, values):
    qualities = {10 * number: float(value) for number, value in enumerate(values, 1)}
    best = BestWeights(tmp_path, patience)
    assert not best.is_exhausted(0) and not best.is_exhausted(5)
    for step, quality in qualities.items():
        best.add(step, quality, nn.Linear(1, 1), write=True)
        known = {one: value for one, value in qualities.items() if one <= step}
        for one in (best, BestWeights(tmp_path, patience)):
            for at in range(0, step + 11, 5):
                assert one.is_exhausted(at) == exhausted(known, patience, at)
            assert one.best_step(step) == min(at for at, value in known.items() if value == max(known.values()))


def test_a_process_that_does_not_write_leaves_no_files(tmp_path):
    best = BestWeights(tmp_path, 1)
    best.add(1, 0.0, nn.Linear(1, 1), write=False)
    assert best.best_step(1) == 1 and not list(tmp_path.iterdir())


def test_a_restart_after_divergence_does_not_use_weights_of_the_attempt_before(tmp_path):
    """Step 4 is the best of the first attempt. Training goes back to step 3, and its second step 4 is worse than 2."""
    models = {name: nn.Linear(2, 2) for name in ("2", "4 of the first attempt", "4", "6")}
    (tmp_path / "step-00000003").mkdir()  # a checkpoint
    best = BestWeights(tmp_path, 3)
    for step, quality, name in ((2, -3.0, "2"), (4, -1.0, "4 of the first attempt"), (6, -2.0, "6")):
        best.add(step, quality, models[name], write=True)
    for again in (best, BestWeights(tmp_path, 3)):  # restarted, and killed and resumed
        again.add(4, -5.0, models["4"], write=True)
        restored = nn.Linear(2, 2)
        again.restore(4, restored)
        assert torch.equal(restored.weight, models["2"].weight)


@pytest.fixture(scope="module")
def accelerator():
    return make_accelerator("float32")


@pytest.fixture
def fit(data, data_config, shape, tmp_path, accelerator):
    """Train with scripted qualities; returns the model's weights, the steps, and the weights at each step."""

    def run(name, qualities=QUALITIES, config=CONFIG, die=lambda when, step: None):
        model = build_dense(shape.model_copy(update={"dropout": 0.1}), data.vocab_size, pad=0, eos=1, seed=0)
        at_step, now = {}, [0]

        def weights():
            return torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()])

        def on_step(step, *_):
            now[0], at_step[step] = step, weights()
            die("step", step)

        def validate():
            die("validation", now[0])
            return qualities[now[0]]

        hooks = Hooks(on_step=on_step, validate=validate, on_metrics=lambda step, _: die("metrics", step))
        examples = Examples(data, data_config, seed=0)
        directory = tmp_path / name
        options = {"accelerator": accelerator, "directory": directory, "seed": 0, "hooks": hooks}
        taken = train(HardLabels(model), examples, config, **options)
        assert taken == max(at_step, default=taken)
        return weights(), at_step

    return run


def test_training_stops_after_patience_evaluations_and_keeps_the_best_weights(fit, tmp_path):
    end, at_step = fit("a")
    assert list(at_step) == list(range(1, 9)) and torch.equal(end, at_step[4])
    assert not torch.equal(end, at_step[8])
    assert [path.name for path in checkpoints(tmp_path / "a")][-1] == "step-00000008"
    recorded = json.loads((tmp_path / "a" / "evaluations.json").read_text())["qualities"]
    assert recorded == {str(step): QUALITIES[step] for step in (2, 4, 6, 8)}


@pytest.mark.parametrize(
    "patience,values,steps,best",
    [
        (1, [-3, -1, -2, 9, 9, 9], 6, 4),
        (3, [-3, -1, -2, -1, -1, 9], 10, 4),
        (2, [1, 1, 1, 9, 9, 9], 6, 2),  # as good is not better
        (2, [1, 2, 3, 4, 5, 6], 12, 12),
        (2, [1, 2, 3, 4, 5, 4], 12, 10),  # the best weights are kept if training does not stop early too
        (6, [6, 5, 4, 3, 2, 1], 12, 2),
    ],
)
def test_the_best_step_is_that_of_the_qualities(fit, patience, values, steps, best):
    qualities = dict(zip(QUALITIES, map(float, values), strict=True))
    end, at_step = fit("a", qualities, CONFIG.model_copy(update={"patience": patience}))
    assert len(at_step) == steps and torch.equal(end, at_step[best])


def test_the_last_step_is_evaluated_if_no_evaluation_falls_on_it(fit):
    config = CONFIG.model_copy(update={"steps": 5})
    end, at_step = fit("a", {2: -3.0, 4: -2.0, 5: -1.0}, config)
    assert len(at_step) == 5 and torch.equal(end, at_step[5])


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("how", ["bits", "gone"])
@pytest.mark.parametrize(
    "name", ["best/step-00000004/model.safetensors", "best/step-00000004/best.json", "evaluations.json"]
)
def test_damaged_files_are_refused_and_the_advice_helps(fit, tmp_path, name, how, killed):
    def die(when, step):
        if killed and (when, step) == ("step", 8):
            raise KeyboardInterrupt

    straight, _ = fit("straight")
    with pytest.raises(KeyboardInterrupt) if killed else nullcontext():
        fit("a", die=die)
    path = tmp_path / "a" / name
    damage(path, how)
    advice = f"delete the directory {tmp_path / 'a'} and run the same command again"
    with pytest.raises(UserError, match=f"{path.name} is {'missing' if how == 'gone' else 'damaged'}.*; {advice}"):
        fit("a")
    shutil.rmtree(tmp_path / "a")
    assert torch.equal(fit("a")[0], straight)


def test_a_run_that_is_shorter_than_its_first_interval_misses_its_evaluation_too(fit, tmp_path):
    short = CONFIG.model_copy(update={"steps": 5, "evaluate_every": 20})
    fit("a", {5: -1.0}, short)
    damage(tmp_path / "a" / "evaluations.json", "gone")
    with pytest.raises(UserError, match="evaluations.json is missing; delete the directory"):
        fit("a", {5: -1.0}, short)


KILLED = [("step", step) for step in range(1, 9)] + [("validation", step) for step in (2, 4, 6, 8)]


@pytest.mark.parametrize("when,step", KILLED)
def test_a_run_that_is_killed_ends_with_the_same_weights(fit, when, step):
    def die(now, at):
        if (now, at) == (when, step):
            raise KeyboardInterrupt

    straight, at_step = fit("straight")
    with pytest.raises(KeyboardInterrupt):
        fit("killed", die=die)
    again, steps = fit("killed")
    assert torch.equal(again, straight)
    first = (step - 1) // 3 * 3 + 1 if when == "step" else step // 3 * 3 + 1
    if when == "validation" and step % 3 == 0:  # the checkpoint follows the evaluation
        first = step - 2
    assert list(steps) == list(range(first, 9))
    assert all(torch.equal(at_step[one], steps[one]) for one in steps)


def test_unfinished_weights_of_a_killed_process_are_removed(fit, tmp_path):
    unfinished = tmp_path / "a" / "best" / ".step-00000002.999"
    unfinished.mkdir(parents=True)
    (unfinished / "model.safetensors").write_bytes(b"half")
    fit("a")
    assert not unfinished.exists() and not list((tmp_path / "a").rglob(".*"))


@pytest.mark.parametrize("free,fits", [(7, False), (9, True)])
def test_space_is_asked_for_the_best_weights_too(fit, tmp_path, monkeypatch, free, fits):
    """In weights of a model, a checkpoint takes 3. Training needs 3 checkpoints and 4 best weights."""

    def die(when, step):
        if (when, step) == ("step", 5):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit("a", die=die)
    there = ["best/step-00000002", "best/step-00000004", "step-00000003"]  # so it needs 8 more
    assert sorted(str(path.relative_to(tmp_path / "a")) for path in (tmp_path / "a").rglob("step-*")) == there
    weights = (tmp_path / "a" / there[0] / "model.safetensors").stat().st_size
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free * weights))
    with nullcontext() if fits else pytest.raises(DiskFull):
        fit("a")


def test_a_finished_run_is_not_continued(fit):
    straight, _ = fit("a")
    again, steps = fit("a")
    assert not steps and torch.equal(again, straight)


def test_without_patience_the_last_weights_are_kept(fit, tmp_path):
    end, at_step = fit("a", config=CONFIG.model_copy(update={"patience": None}))
    assert len(at_step) == 12 and torch.equal(end, at_step[12])
    assert not (tmp_path / "a" / "best").exists() and not (tmp_path / "a" / "evaluations.json").exists()
