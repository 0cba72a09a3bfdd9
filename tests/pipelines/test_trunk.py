"""Baseline and teachers that go on from one dense trunk, through the command line."""

import json

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

TRUNK = "trunk={steps: 12, batch_size: 8, learning_rate: 5e-3, warmup_steps: 2, log_every: 4, checkpoint_every: 8}"
# Whoever goes on from the trunk at this rate stays where the trunk is.
STILL = "teacher.training.learning_rate=1e-12"


@pytest.fixture(scope="module")
def finished(cli, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trunk") / "work"
    options = ["teacher.experts=[2]", "seeds=[0, 1]", "jobs=2", "precision=float32", TRUNK, STILL]
    done = cli("run", "smoke", "--workdir", str(workdir), "--json", *(f"--set={option}" for option in options))
    assert done.returncode == 0, done.stderr
    stages = [json.loads(path.read_text()) for path in workdir.glob("stages/*/stage.json")]
    return workdir, json.loads(done.stdout), {stage["title"]: stage for stage in stages}


@pytest.mark.parametrize("seed", ["", " seed 1"], ids=["seed 0", "seed 1"])
def test_the_baseline_begins_where_its_seeds_trunk_ends(finished, seed):
    stages = finished[2]
    assert stages[f"baseline{seed}"]["metrics"]["quality"] == pytest.approx(
        stages[f"trunk{seed}"]["metrics"]["quality"], abs=1e-6
    )
    assert stages["trunk"]["metrics"]["quality"] != stages["trunk seed 1"]["metrics"]["quality"]


def test_the_report_tells_the_trunk(finished):
    workdir, report, stages = finished
    qualities = [stages[f"trunk{seed}"]["metrics"]["quality"] for seed in ("", " seed 1")]
    assert report["trunk"]["quality"] == pytest.approx(sum(qualities) / 2)
    assert report["trunk"]["steps"] == 12 and report["trunk"]["tokens"] * 8 == report["baseline"]["tokens"] * 12
    assert "one dense trunk" in (workdir / "report.md").read_text()


def test_lineage_goes_through_the_trunk(finished):
    workdir, _, stages = finished
    client = MlflowClient(f"sqlite:///{workdir}/mlflow.db")
    for title in ("teacher e2", "baseline"):
        inputs = client.get_run(stages[title]["run_id"]).inputs.model_inputs
        assert [one.model_id for one in inputs] == [stages["trunk"]["model_id"]]


def test_a_student_may_begin_where_the_baseline_does(finished, cli):
    workdir, _, stages = finished
    options = ["teacher.experts=[2]", "precision=float32", TRUNK, STILL, "student.non_expert_init=trunk"]
    done = cli(*("init", "smoke", "--workdir", str(workdir), "--json"), *(f"--set={option}" for option in options))
    made = json.loads(done.stdout)[0]
    trunk = next(workdir.glob(f"stages/trunk-{stages['trunk']['fingerprint'][:12]}/model/model.safetensors"))
    student = next(workdir.glob(f"stages/init-e2-{made['fingerprint'][:12]}/model/model.safetensors"))
    assert made["facts"]["parameters"] == {"trunk": stages["trunk"]["metrics"]["parameters"]}
    weights, begun = load_file(student), load_file(trunk)
    assert weights.keys() == begun.keys() and all(torch.equal(weights[name], begun[name]) for name in begun)


@pytest.mark.parametrize("key", ["baseline.checkpoint=t5", "teacher.checkpoints={e64: t5}"])
def test_a_trunk_and_a_loaded_model_contradict_each_other(cli, tmp_path, key):
    done = cli(*("config", "smoke"), f"--set={TRUNK}", f"--set={key}", "--set=data.tokenizer=t5")
    assert done.returncode == 2 and "leave one of them out" in done.stderr and "Traceback" not in done.stderr


def test_a_config_without_one_has_none_to_make(cli, tmp_path):
    done = cli("trunk", "smoke", "--workdir", str(tmp_path / "work"))
    assert done.returncode == 2 and "set trunk.steps" in done.stderr
