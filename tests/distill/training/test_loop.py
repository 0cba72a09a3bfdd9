from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

from distill.config import TrainingConfig
from distill.data.examples import Batch, Examples
from distill.errors import DiskFull, UserError
from distill.models.build import build_dense
from distill.training import checkpoint
from distill.training.checkpoint import checkpoints, newest_checkpoint
from distill.training.divergence import TrainingDiverged
from distill.training.loop import Hooks, make_accelerator, train
from distill.training.schedule import learning_rate, trunk_steps
from distill.training.train_modules import HardAndSoftLabels, HardLabels
from tests.damage import damage

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
    """Examples with targets of different lengths, so that micro-batches have unequal token counts."""

    def __init__(self, examples):
        self.examples = examples

    def batch(self, indices):
        inputs, labels = self.examples.batch(indices)
        for row, index in enumerate(indices):
            labels[row, 2 + index % 5 :] = -100
        return Batch(inputs, labels)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "muon"])
def test_micro_batches_equal_one_batch(dense, examples, tmp_path, accelerator, optimizer):
    whole = CONFIG.model_copy(update={"optimizer": optimizer, "steps": 4})
    micro = whole.model_copy(update={"micro_batch_size": 2})
    one = fit(dense(), Padded(examples), tmp_path / "a", accelerator, whole)
    four = fit(dense(), Padded(examples), tmp_path / "b", accelerator, micro)
    torch.testing.assert_close(one, four, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(one, weights(dense()), atol=1e-3)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "muon"])
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
    assert [path.name for path in saved] == [f"step-{step:08d}" for step in range(2, stop, 2)]
    resumed = fit(dense(dropout=0.1), examples, tmp_path / "b", accelerator, config)
    assert torch.equal(straight, resumed)


def damage_checkpoint(path, how):
    """Damage one file of a checkpoint."""
    file = path / {"bits": "model.safetensors", "cut": "optimizer.safetensors"}.get(how, "state.json")
    if how == "value":
        file.write_text(file.read_text().replace('"step": 4', '"step": 3'))
    else:
        damage(file, how)


@pytest.mark.parametrize(
    "how,says",
    [
        ("bits", "model.safetensors is damaged: it has SHA-256"),
        ("cut", "optimizer.safetensors is damaged"),
        ("value", "state.json is damaged: its values do not match"),
        ("gone", "state.json is missing"),
    ],
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(dense, examples, tmp_path, accelerator, how, says):
    straight = fit(dense(dropout=0.1), examples, tmp_path / "whole", accelerator)
    fit(dense(dropout=0.1), examples, tmp_path / "b", accelerator, stop=4)
    damage_checkpoint(tmp_path / "b" / "step-00000004", how)
    said, steps = [], []
    hooks = Hooks(on_step=lambda step, total, metrics: steps.append(step), say=said.append)
    resumed = fit(dense(dropout=0.1), examples, tmp_path / "b", accelerator, hooks=hooks)
    assert len(said) == 1 and says in said[0] and said[0].endswith("the checkpoint before it is used")
    assert steps == [3, 4, 5, 6] and torch.equal(straight, resumed)
    assert [path.name for path in checkpoints(tmp_path / "b")] == ["step-00000004", "step-00000006"]
    assert newest_checkpoint(tmp_path / "b", said.append).name == "step-00000006" and len(said) == 1


def test_a_disk_that_fills_up_leaves_the_last_checkpoint(dense, examples, tmp_path, accelerator, monkeypatch):
    straight = fit(dense(), examples, tmp_path / "whole", accelerator)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / ".step-00000002.1").mkdir()  # unfinished, of a killed process
    save = checkpoint.save_file

    def full(tensors, path):
        if "00000004" in str(path):
            path.write_bytes(b"half")
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(DiskFull, match=r"b/step-00000004 cannot be written, the disk is full: it needs \d+\.\d kB, "):
        fit(dense(), examples, tmp_path / "b", accelerator)
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["step-00000002"]
    monkeypatch.undo()
    assert torch.equal(straight, fit(dense(), examples, tmp_path / "b", accelerator))


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "muon"])
def test_space_for_checkpoints_is_asked_for_first(dense, examples, tmp_path, accelerator, monkeypatch, optimizer):
    config = CONFIG.model_copy(update={"optimizer": optimizer})
    fit(dense(), examples, tmp_path / "a", accelerator, config)
    saved = sum(file.stat().st_size for file in (tmp_path / "a" / "step-00000006").iterdir())
    parameters = sum(parameter.numel() for parameter in dense().parameters())
    assert config.checkpoint_bytes(parameters) == pytest.approx(saved, rel=0.25)  # headers matter at this size
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    steps = []
    hooks = Hooks(on_step=lambda step, total, metrics: steps.append(step))
    with pytest.raises(
        DiskFull, match=r"training \(checkpoints of .* parameters\) needs about .*which has 1.0 kB left"
    ):
        fit(dense(), examples, tmp_path / "b", accelerator, config, hooks=hooks)
    assert not steps
    fit(dense(), examples, tmp_path / "a", accelerator, config)  # training is finished


class Spoiled(HardLabels):
    """Multiplies the loss of some calls, counted over all attempts."""

    def __init__(self, model, factors):
        super().__init__(model)
        self.factors, self.calls = factors, 0

    def forward(self, input_ids, labels):
        loss, metrics = super().forward(input_ids, labels)
        self.calls += 1
        factor = self.factors.get(self.calls, 1.0)
        return loss * factor, {"loss": metrics["loss"] * factor}


RESTART = CONFIG.model_copy(update={"on_divergence": "restart", "steps": 8})


def spoiled(factors):
    return lambda model: Spoiled(model, factors)


def test_a_restart_halves_the_learning_rate_and_ends_well(dense, examples, tmp_path, accelerator):
    said, rates, restarts = [], {}, {}

    def on_metrics(step, metrics):
        rates[step], restarts[step] = metrics["learning_rate"], metrics.get("restarts")

    attempts = []
    hooks = Hooks(on_metrics=on_metrics, on_attempt=attempts.append, say=said.append)
    objective = spoiled({6: float("nan")})  # step 6
    after = fit(dense(), examples, tmp_path, accelerator, RESTART, objective, hooks=hooks)
    assert said == [
        "Diverged at step 6: loss nan, gradient norm nan; resuming from step 4 with 1/2 of the learning rate"
    ]
    plain = [learning_rate(RESTART, step, 8) for step in range(8)]
    assert [rates[step] for step in range(1, 9)] == [*plain[:4], *(rate / 2 for rate in plain[4:])]
    assert restarts == {1: None, 2: None, 3: None, 4: None, 5: 1, 6: 1, 7: 1, 8: 1} and attempts == [0, 1]
    assert after.isfinite().all()


def test_the_learning_rate_of_a_restart_survives_a_kill(dense, examples, tmp_path, accelerator):
    straight = fit(dense(), examples, tmp_path / "a", accelerator, RESTART, spoiled({6: float("inf")}))

    def die(step, total, metrics):
        calls.append(step)
        if calls == [1, 2, 3, 4, 5, 5]:  # the first step after going back from 6 to 4
            raise KeyboardInterrupt

    calls = []
    with pytest.raises(KeyboardInterrupt):
        fit(dense(), examples, tmp_path / "b", accelerator, RESTART, spoiled({6: float("inf")}), hooks=Hooks(die))
    attempts = []
    again = fit(dense(), examples, tmp_path / "b", accelerator, RESTART, hooks=Hooks(on_attempt=attempts.append))
    assert torch.equal(straight, again) and attempts == [1]


def test_an_evaluation_that_finds_the_model_useless_restarts_from_before_it(dense, examples, tmp_path, accelerator):
    evaluated = []

    def evaluate(step):
        evaluated.append(step)
        if evaluated == [4, 8]:
            raise TrainingDiverged("all tokens of encoder.1 go to expert 3")

    config, said = RESTART.model_copy(update={"steps": 10, "evaluate_every": 4}), []
    fit(dense(), examples, tmp_path, accelerator, config, hooks=Hooks(evaluate=evaluate, say=said.append))
    assert evaluated == [4, 8, 8, 10]  # also after the last step, while a restart is possible
    assert said[0].startswith(
        "Diverged at step 8: all tokens of encoder.1 go to expert 3; resuming from step 6 with 1/2"
    )


def test_before_the_first_checkpoint_a_restart_begins_again(dense, examples, tmp_path, accelerator):
    steps, said = [], []
    hooks = Hooks(on_step=lambda step, total, metrics: steps.append(step), say=said.append)
    fit(dense(), examples, tmp_path, accelerator, RESTART, spoiled({2: float("nan")}), hooks=hooks)
    assert steps == [1, *range(1, 9)] and "from step 0 with 1/2" in said[0]


def test_where_a_restart_was_in_vain_the_next_goes_further_back_and_the_fourth_stops(
    dense, examples, tmp_path, accelerator
):
    steps, said = [], []
    hooks = Hooks(on_step=lambda step, total, metrics: steps.append(step), say=said.append)
    never = spoiled({call: float("nan") for call in (6, 7, 8, 9)})
    with pytest.raises(TrainingDiverged, match="stopped at step 3 after 3 restarts: loss nan.*Lower learning_rate"):
        fit(dense(), examples, tmp_path, accelerator, RESTART, never, hooks=hooks)
    assert [line[line.index("from") :].split(" of")[0] for line in said] == [
        "from step 4 with 1/2",
        "from step 2 with 1/4",
        "from step 2 with 1/8",
    ]
    assert steps == [1, 2, 3, 4, 5]


def test_a_gradient_explosion_is_noticed_and_a_large_gradient_is_not(dense, examples, tmp_path, accelerator):
    config = CONFIG.model_copy(update={"steps": 14, "learning_rate": 1e-3})
    with pytest.raises(TrainingDiverged, match=r"stopped at step 12: gradient norm .*e\+0\d \(recent median .*\)"):
        fit(dense(), examples, tmp_path / "a", accelerator, config, spoiled({12: 1e5}))
    assert fit(dense(), examples, tmp_path / "b", accelerator, config, spoiled({12: 50.0})).isfinite().all()


def test_an_explosion_is_noticed_right_after_a_resume(dense, examples, tmp_path, accelerator):
    """The checkpoint has the norms of the steps before the kill."""
    config = CONFIG.model_copy(update={"steps": 14, "learning_rate": 1e-3})
    fit(dense(), examples, tmp_path, accelerator, config, stop=12)
    with pytest.raises(TrainingDiverged, match="stopped at step 13: gradient norm"):
        fit(dense(), examples, tmp_path, accelerator, config, spoiled({1: 1e5}))


def test_divergence_stops_and_keeps_the_last_checkpoint(dense, examples, tmp_path, accelerator):
    model = dense()
    with pytest.raises(TrainingDiverged, match="stopped at step 4: loss nan.*Lower learning_rate"):
        fit(model, examples, tmp_path, accelerator, objective=spoiled({4: float("nan")}))
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
    assert first["kl"] == pytest.approx(0, abs=1e-5) and seen[6]["kl"] > 0  # their weights were equal at the start
    assert first["loss"] == pytest.approx(0.75 * first["hard_loss"] + 0.25 * first["soft_loss"], rel=1e-5)


def test_no_example_is_read_twice_in_an_epoch(examples, accelerator, dense, tmp_path):
    read = []

    class Spy:
        def batch(self, indices):
            read.extend(indices)
            return examples.batch(indices)

    fit(dense(), Spy(), tmp_path, accelerator, CONFIG.model_copy(update={"micro_batch_size": 4}))
    assert read == list(range(6 * 8))


def test_a_trunk_and_its_branches_equal_separate_runs(dense, examples, tmp_path, accelerator):
    """Two lengths branch from one trunk, so the two measurements of the baseline need only one run."""
    config = CONFIG.model_copy(update={"cooldown": 0.5})
    whole = fit(dense(), examples, tmp_path / "whole", accelerator, config)
    model = dense()
    fit(model, examples, tmp_path / "trunk", accelerator, config, steps=20, stop=trunk_steps(config, 6))
    start = checkpoints(tmp_path / "trunk")[-1]
    branch = fit(model, examples, tmp_path / "branch", accelerator, config, start=start)
    assert torch.equal(whole, branch)


@pytest.mark.parametrize("cooldown", [0.5, 1.0])
def test_a_trunk_of_any_length_is_where_branches_begin(dense, examples, tmp_path, accelerator, cooldown):
    """This also holds for a trunk of 0 steps: the branch must not continue from weights trained in between."""
    config = CONFIG.model_copy(update={"cooldown": cooldown, "warmup_steps": 0})
    whole = fit(dense(), examples, tmp_path / "whole", accelerator, config)
    model = dense()
    fit(model, examples, tmp_path / "trunk", accelerator, config, steps=20, stop=trunk_steps(config, 6))
    start = checkpoints(tmp_path / "trunk")[-1]
    fit(model, examples, tmp_path / "other", accelerator, config, start=start, steps=9)
    assert torch.equal(whole, fit(model, examples, tmp_path / "branch", accelerator, config, start=start))


def test_a_batch_that_cannot_be_shared_is_refused(dense, examples, tmp_path, accelerator):
    with pytest.raises(UserError, match="batch_size 8 cannot be shared"):
        fit(dense(), examples, tmp_path, accelerator, CONFIG.model_copy(update={"micro_batch_size": 3}))


def test_gradient_accumulation_of_the_environment_is_not_applied_twice(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert make_accelerator("float32").gradient_accumulation_steps == 1
