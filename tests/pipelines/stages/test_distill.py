"""The training of students, through the command line."""

import json
import shutil

import pytest
from mlflow import MlflowClient

OPTIONS = {"hard_fraction": "0.5", "soft_start": "2"}


@pytest.fixture(scope="module")
def work(smoke, tmp_path_factory):
    return shutil.copytree(smoke[0], tmp_path_factory.mktemp("distill") / "work")


def distill(cli, work, options):
    overrides = [part for name, value in options.items() for part in ("--set", f"distill.{name}={value}")]
    done = cli("distill", "smoke", "--ratio", "e4", *overrides, "--workdir", str(work), "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)[0]


def test_every_part_of_the_loss_is_a_curve(cli, work):
    before = set((work / "stages").iterdir())
    facts = distill(cli, work, OPTIONS)
    (made,) = set((work / "stages").iterdir()) - before  # reuses the teacher
    assert made.name.startswith("distill-e4-")
    client = MlflowClient(f"sqlite:///{work}/mlflow.db")

    def steps(name):
        return [point.step for point in client.get_metric_history(facts["run_id"], f"train/{name}")]

    assert steps("loss") == steps("hard_loss") == [2, 4, 6, 8]
    assert steps("soft_loss") == steps("kl") == [4, 6, 8]
    params = client.get_run(facts["run_id"]).data.params
    assert params["distill.hard_fraction"] == "0.5" and params["distill.soft_start"] == "2"
