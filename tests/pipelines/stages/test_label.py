"""Cached soft labels, through the command line."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.forked import Forked

ROOT = Path(__file__).parents[3]
EXAMPLES = ["--set", "distill.labels.examples=1100"]  # 18 batches of 64: progress is saved after 16
CACHED = [*EXAMPLES, "--set", "distill.soft_labels=cached"]


@pytest.fixture(scope="module")
def labelled(smoke, cli, tmp_path_factory):
    """A work directory after ``label``, and the finished process."""
    work = tmp_path_factory.mktemp("label") / "work"
    shutil.copytree(smoke[0], work)
    done = cli("label", "smoke", "--ratio", "e4", *EXAMPLES, "--workdir", str(work), "--json")
    assert done.returncode == 0, done.stderr
    return work, done


def labels_in(work: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in next(work.glob("stages/label-e4-*/labels")).iterdir()}


def test_labels_are_files_that_mlflow_knows(labelled):
    work, done = labelled
    (facts,) = json.loads(done.stdout)
    assert facts["metrics"]["bytes_per_token"] == 2 * 16 + 2 and facts["metrics"]["examples"] == 1100
    assert set(labels_in(work)) == {"words.npy", "entropy.npy", "labels.json"}
    assert not list(work.glob("stages/label-*/checkpoints"))
    client = MlflowClient(f"sqlite:///{work}/mlflow.db")
    run = client.get_run(facts["run_id"])
    assert run.data.metrics["bytes_per_token"] == 34 and run.data.params["labels.form"] == "sampled"
    sha256 = json.loads(labels_in(work)["labels.json"])["sha256"]
    assert run.data.params["sha256.words.npy"] == sha256["words.npy"]
    assert [file.path for file in client.list_artifacts(facts["run_id"])] == ["config.yaml", "labels.json"]


def test_a_teacher_larger_than_memory_makes_the_same_labels_layer_by_layer(labelled, cli, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(labelled[0], work)
    expected = labels_in(work)
    shutil.rmtree(next(work.glob("stages/label-e4-*")))
    arguments = ["label", "smoke", "--ratio", "e4", *EXAMPLES, "--workdir", str(work), "--set"]
    refused = cli(*arguments, "teacher.memory=1KB")
    assert refused.returncode == 2 and not list(work.glob("stages/label-e4-*"))
    whole, by_layer = re.search(r"needs (\S+) MB of memory, or (\S+) MB layer by layer", refused.stderr).groups()
    done = cli(*arguments, f"teacher.memory={(float(whole) + float(by_layer)) / 2:.3f}MB")
    assert done.returncode == 0 and "so it runs layer by layer" in done.stderr, done.stderr
    assert labels_in(work) == expected


def test_a_student_needs_the_labels_and_not_the_teacher(smoke, labelled, cli):
    work = labelled[0]
    teacher = next(work.glob("stages/teacher-e4-*/model"))
    teacher.rename(work / "elsewhere")
    done = cli("distill", "smoke", "--ratio", "e4", *CACHED, "--workdir", str(work), "--json")
    (work / "elsewhere").rename(teacher)
    assert done.returncode == 0, done.stderr
    (facts,) = json.loads(done.stdout)
    online = json.loads(next(smoke[0].glob("stages/distill-e4-*/stage.json")).read_text())
    assert facts["fingerprint"] != online["fingerprint"]
    assert facts["metrics"]["quality"] == pytest.approx(online["metrics"]["quality"], abs=0.05)

    tree = json.loads(cli("lineage", facts["model_uri"], "--workdir", str(work), "--json").stdout)
    above = {node["stage"]: node for node in tree["inputs"]}
    assert set(above) == {"label", "init"}
    labels, (made_by,) = above["label"], above["label"]["inputs"]
    assert made_by["stage"] == "teacher" and made_by["model_id"] == above["init"]["inputs"][0]["model_id"]
    assert [dataset["context"] for dataset in labels["datasets"]] == ["train"]
    drawn = cli("lineage", facts["model_uri"], "--workdir", str(work)).stdout
    assert f"labels   sha256 {labels['sha256']}" in drawn


def test_run_computes_missing_stages_and_reuses_the_others(labelled, cli):
    arguments = ["run", "smoke", *CACHED, "--workdir", str(labelled[0]), "--json"]
    done = cli(*arguments)
    assert done.returncode == 0, done.stderr
    lines = [line.split("  ")[0] for line in done.stderr.splitlines()]
    assert lines.index("label e2") < lines.index("distill e2")
    said = {line.split("  ")[0]: line for line in done.stderr.splitlines()}
    assert all("reused" in said[title] for title in ("baseline", "teacher e2", "init e4", "label e4"))
    assert all("done in" in said[title] for title in ("label e2", "distill e2", "report"))
    assert [row["ratio"] for row in json.loads(done.stdout)["ratios"]] == ["e2", "e4"]


def test_missing_labels_are_named_with_the_command_that_makes_them(smoke, cli):
    done = cli("distill", "smoke", "--ratio", "e4", *CACHED, "--workdir", str(smoke[0]))
    assert done.returncode == 2
    assert "label e4 is missing" in done.stderr and "switch-distill label smoke --ratio e4" in done.stderr


@pytest.mark.parametrize(
    "override,message",
    [
        ("distill.hard_fraction=1.0", "nothing to label: distill.hard_fraction is 1"),
        ("distill.labels.num_tokens=513", "distill.labels.num_tokens is 513, but the vocabulary has only 512 tokens"),
    ],
)
def test_impossible_label_settings_are_refused(smoke, cli, override, message):
    done = cli("label", "smoke", "--set", override, "--workdir", str(smoke[0]))
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_killed_labelling_is_finished_by_two_processes_with_the_same_bytes(smoke, labelled, interrupted, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(smoke[0], work)
    arguments = ["label", "smoke", "--ratio", "e4", *EXAMPLES, "--workdir", str(work)]
    assert interrupted(arguments, 17 * 64, signal.SIGKILL) == -9
    directory = next(work.glob("stages/label-e4-*"))
    assert json.loads((directory / "checkpoints" / "progress.json").read_text())["units"] == 1
    assert not (directory / "labels" / "labels.json").exists()
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "pipelines.cli"]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": "", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert labels_in(work) == labels_in(labelled[0])


@pytest.mark.skipif(sys.platform != "linux", reason="locks files as Linux does")
def test_a_second_command_shares_the_units_and_finishes_those_of_a_killed_first(smoke, labelled, cli, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(smoke[0], work)
    arguments = ["label", "smoke", "--ratio", "e4", *EXAMPLES, "--workdir", str(work)]
    hangs = "import time; from distill.io.units import Units; Units.finish = lambda *given: time.sleep(600)\n"
    start = "from pipelines.cli import main; main()"
    first, end = Forked(hangs + start, arguments), time.monotonic() + 300

    def until(name: str, text: bool) -> None:
        while not [
            path for path in work.glob(f"stages/label-e4-*/checkpoints/*/{name}") if path.read_text() or not text
        ]:
            assert first.poll() is None and time.monotonic() < end
            time.sleep(0.01)

    try:
        until("00000000.claim", text=False)  # the first command has claimed the first unit
        second = Forked(start, arguments)
        until("00000001.claim", text=True)  # the second one has finished the other unit
        assert second.poll() is None
    finally:
        first.kill()
        first.communicate()
    said = second.communicate()[1]
    assert second.returncode == 0 and "this command does a part" in said, said
    assert labels_in(work) == labels_in(labelled[0])
    assert not list(work.glob("stages/label-*/checkpoints"))
