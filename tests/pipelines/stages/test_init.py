"""Initialisation of students, through the command line."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient

from distill.errors import UserError
from pipelines.stages import init as stage
from students.config import StudentConfig

LAYERS = {"ffn_error/encoder.1", "ffn_error/decoder.1"}


@pytest.fixture(scope="module")
def work(smoke, tmp_path_factory):
    work = tmp_path_factory.mktemp("init") / "work"
    shutil.copytree(smoke[0], work)
    return work


def init(cli, work: Path, *settings: str) -> dict:
    overrides = [argument for setting in settings for argument in ("--set", f"student.{setting}")]
    done = cli("init", "smoke", "--ratio", "e4", *overrides, "--workdir", str(work), "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)[0]


def ffn_errors(facts: dict) -> float:
    return sum(facts["metrics"][layer] for layer in LAYERS)


def test_a_student_fitted_to_the_experts_has_a_smaller_ffn_error(work, cli):
    plain, random = init(cli, work), init(cli, work, "measure_ffn_errors=true")
    assert not set(plain["metrics"]) & LAYERS
    fitted = init(cli, work, "ffn_init=fit", "calibration_examples=64")
    assert set(random["metrics"]) >= LAYERS and ffn_errors(fitted) < ffn_errors(random)
    parts = fitted["facts"]["parameters"]
    assert parts["built"] == random["facts"]["parameters"]["fresh"] and parts["fresh"] == 0
    client = MlflowClient(f"sqlite:///{work}/mlflow.db")
    read = {
        name: {tag.value for used in client.get_run(facts["run_id"]).inputs.dataset_inputs for tag in used.tags}
        for name, facts in {"plain": plain, "random": random, "fitted": fitted}.items()
    }
    assert "train" in read["fitted"] and "train" in read["random"] and "train" not in read["plain"]


def test_a_student_can_start_from_random_weights(work, cli):
    facts = init(cli, work, "non_expert_init=random")
    assert facts["facts"]["parameters"] == {"fresh": facts["metrics"]["parameters"]}
    assert facts["fingerprint"] != init(cli, work)["fingerprint"]


def test_too_many_calibration_examples_are_refused(work, cli):
    settings = ["--set", "student.ffn_init=fit", "--set", "student.calibration_examples=100000"]
    done = cli("init", "smoke", "--ratio", "e4", *settings, "--workdir", str(work))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "student.calibration_examples is 100000" in done.stderr and "set it to at most" in done.stderr


@pytest.mark.parametrize("wanted,fits", [(40, True), (41, False)])
def test_the_error_is_not_measured_on_the_calibration_text(monkeypatch, wanted, fits):
    """Of an epoch of 50 examples, 40 are calibrated and 10 are measured. A task's epoch differs from its pairs."""
    given: list[int] = []

    class Epoch:
        def __len__(self):
            return 50

        def batch(self, indices):
            given.extend(indices)

    monkeypatch.setattr(stage, "training_examples", lambda *_, **__: Epoch())
    config = SimpleNamespace(
        student=StudentConfig(ffn_init="fit", calibration_examples=wanted),
        teacher=SimpleNamespace(evaluation_batch_size=8),
        data=None,
    )
    run = SimpleNamespace(config=config, data=None, seed=0)
    if not fits:
        with pytest.raises(UserError, match="an epoch has 50 training examples, .* set it to at most 40"):
            stage._calibration_text(run)
        return
    stage._calibration_text(run)
    assert given == list(range(50))
