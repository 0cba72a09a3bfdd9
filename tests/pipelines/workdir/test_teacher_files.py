"""A loaded teacher is a reference to its files, through the command line."""

import json
import os
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient


@pytest.fixture(scope="module")
def teacher(smoke, tmp_path_factory) -> Path:
    """A directory as from the hub: a teacher and its tokenizer."""
    return shutil.copytree(next(smoke[0].glob("stages/teacher-e4-*/model")), tmp_path_factory.mktemp("hub") / "teacher")


def run(cli, stage: str, teacher: Path, work: Path, *settings: str):
    loaded = (
        "teacher.experts=[]",
        f"teacher.checkpoints={{e4: {teacher}}}",
        f"data.tokenizer={teacher}",
        "data.vocabulary=512",
        *settings,
    )
    return cli(stage, "smoke", *(part for one in loaded for part in ("--set", one)), "--workdir", str(work), "--json")


@pytest.fixture(scope="module")
def work(teacher, cli, tmp_path_factory) -> Path:
    """A work directory after ``teacher`` and ``init``."""
    work = tmp_path_factory.mktemp("reference") / "work"
    for stage in ("teacher", "init"):
        done = run(cli, stage, teacher, work)
        assert done.returncode == 0, done.stderr
    return work


def test_a_loaded_teacher_is_not_copied(work, teacher):
    (directory,) = work.glob("stages/teacher-e4-*")
    assert not [path for path in directory.rglob("*") if "safetensors" in path.name]
    facts = json.loads((directory / "stage.json").read_text())["facts"]
    assert facts["reference"]["place"] == str(teacher) and facts["reference"]["revision"] is None
    assert set(facts["reference"]["sha256"]) == {"model.safetensors", "config.json"}


def test_mlflow_refers_to_the_files(work, teacher):
    client = MlflowClient(f"sqlite:///{work}/mlflow.db")
    records = {
        kind: json.loads(next(work.glob(f"stages/{kind}-e4-*/stage.json")).read_text()) for kind in ("teacher", "init")
    }
    model = client.get_logged_model(records["teacher"]["model_id"])
    assert model.tags["directory"] == str(teacher) and len(model.tags["sha256"]) == 32
    assert records["teacher"]["model_uri"] == f"{teacher.as_uri()}/"
    inputs = client.get_run(records["init"]["run_id"]).inputs.model_inputs
    assert [one.model_id for one in inputs] == [model.model_id]


def test_a_teacher_that_has_changed_is_refused(work, teacher, cli, tmp_path):
    """Even if its size and time are those of before, so that its stage counts as finished."""
    copy, weights = shutil.copytree(work, tmp_path / "work"), teacher / "model.safetensors"
    content, stat = weights.read_bytes(), weights.stat()
    shutil.rmtree(next(copy.glob("stages/init-e4-*")))
    try:
        changed = bytearray(content)
        changed[-4:] = b"\0\0\0\0"
        weights.write_bytes(changed)
        os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        done = run(cli, "init", teacher, copy)
        assert done.returncode == 2 and done.stdout == "", done.stderr
        assert f"model.safetensors in {teacher} has changed since teacher e4 was computed" in done.stderr
        assert "switch-distill teacher CONFIG --ratio e4" in done.stderr and len(done.stderr.splitlines()) == 1
        assert not list(copy.glob("stages/init-e4-*"))
    finally:
        weights.write_bytes(content)
        os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_teacher_that_is_gone_is_named(work, teacher, cli, tmp_path):
    """A stage that does not read it still works."""
    copy = shutil.copytree(work, tmp_path / "work")
    away = teacher.rename(teacher.with_name("away"))
    try:
        done = run(cli, "distill", teacher, copy)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and str(teacher) in done.stderr
    finally:
        away.rename(teacher)
