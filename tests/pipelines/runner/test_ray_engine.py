"""Stages, labels and answers on a Ray cluster of this machine, of which a worker, a node or the head is killed."""

import os
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from mlflow import MlflowClient

from distill.errors import UserError
from pipelines.config.run_config import load_config
from pipelines.runner import ray_engine
from pipelines.runner.ray_engine import StageFailed, check_engine, compute, order_of
from pipelines.workdir.plan import plan
from pipelines.workdir.workspace import Workspace

ROOT = Path(__file__).parents[3]
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason='ray is missing: pip install "switch-distill[ray]"')


def results(work: Path) -> dict[str, bytes]:
    """The bytes of all weights, losses, labels and answers."""
    names = ("model/model.safetensors", "*losses.json", "labels/*", "answers/*")
    paths = [path for name in names for path in work.glob(f"stages/*/{name}")]
    return {str(path.relative_to(work)): path.read_bytes() for path in paths}


def one_sentence(said: str) -> str:
    """The last line of the output, which has no traceback."""
    assert "Traceback" not in said
    return said.splitlines()[-1]


@needs_ray
@pytest.mark.slow
def test_a_lost_worker_and_a_lost_head_change_no_byte(smoke, on_ray, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(smoke[0] / "data", work / "data")
    first = on_ray("run", "smoke", "--workdir", str(work))
    first.until(lambda: list(work.glob("stages/teacher-e4-*/checkpoints/*")))
    first.kill("ray::teacher e4")
    assert not list(work.glob("stages/teacher-e4-*/stage.json"))
    first.until(lambda: list(work.glob("stages/teacher-e4-*/stage.json")))
    first.kill(str(Path(find_spec("ray").origin).parent / "core/src/ray/gcs"))
    code, said = first.ended()
    assert code == 1 and "is lost; run the same command again" in one_sentence(said)

    second = on_ray("run", "smoke", "--workdir", str(work))
    code, said = second.ended()
    assert code == 0, said
    assert "teacher e4       done" not in said and "report           done" in said
    assert results(work) == results(smoke[0])


@needs_ray
@pytest.mark.slow
def test_a_lost_node_changes_no_byte_with_a_tracking_server(smoke, on_ray, nodes, tracker, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(smoke[0] / "data", work / "data")
    run = on_ray("run", "smoke", "--workdir", str(work), "--address", nodes.address, tracking=tracker.url)
    run.until(lambda: list(work.glob("stages/teacher-e4-*/checkpoints/*")))
    [lost] = nodes.of("ray::teacher e4")
    nodes.kill(lost)
    assert not list(work.glob("stages/teacher-e4-*/stage.json"))
    code, said = run.ended()
    assert code == 0, said
    assert results(work) == results(smoke[0])
    client = MlflowClient(tracker.url)
    [experiment] = [one for one in client.search_experiments() if one.name == "smoke"]
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len(runs) == len([*work.glob("stages/*/stage.json")]) and not (work / "mlflow.db").exists()


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "finished", "arguments"),
    [
        ("label", "finished_smoke", ["smoke", "--ratio", "e4", "--set", "distill.labels.examples=4096"]),
        ("answer", "task_work", ["task-smoke", "--set", "teacher.experts=[2]", "--set", "distill.targets=teacher"]),
    ],
)
def test_units_of_several_workers_of_which_one_is_lost_are_the_same_bytes(
    kind, finished, arguments, on_ray, cli, tmp_path, request
):
    finished, works = request.getfixturevalue(finished), [tmp_path / "plain", tmp_path / "ray"]
    for work in works:
        shutil.copytree(finished[0] if isinstance(finished, tuple) else finished, work)
    arguments = [kind, *arguments, "--workdir"]
    done = cli(*arguments, str(works[0]))
    assert done.returncode == 0, done.stderr
    run = on_ray(*arguments, str(works[1]))
    run.until(lambda: list(works[1].glob(f"stages/{kind}-*/checkpoints/*/*.claim")))
    run.process.suspend()  # so that it does not end before its workers are found
    workers = [one for one in run.process.children(recursive=True) if one.name().startswith(f"ray::{kind}")]
    workers[0].kill()
    run.process.resume()
    code, said = run.ended()
    assert code == 0, said
    assert results(works[1]) == results(works[0])
    assert list(works[0].glob(f"stages/{kind}-*/{kind}s/*"))
    assert not list(works[1].glob(f"stages/{kind}-*/checkpoints"))


@needs_ray
@pytest.mark.slow
def test_a_users_error_is_one_sentence_and_other_stages_stop_in_order(smoke, on_ray, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(smoke[0], work)
    for name in ("baseline-*", "init-e4-*", "distill-e4-*"):
        shutil.rmtree(next(work.glob(f"stages/{name}")))
    weights = next(work.glob("stages/teacher-e4-*/model/model.safetensors"))
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    code, said = on_ray("run", "smoke", "--workdir", str(work)).ended()
    assert code == 2 and "model.safetensors is damaged" in one_sentence(said)
    assert not list(work.glob("stages/init-e4-*"))
    runs = MlflowClient(f"sqlite:///{work}/mlflow.db").search_runs(["1"])
    assert not [run.info.run_id for run in runs if run.info.status == "RUNNING"]


class Planned(Workspace):
    """A workspace with planned stages, none of them computed."""

    def __init__(self, directory: Path, config: str, *overrides: str):
        self.config, self.source, self.directory = load_config(config, list(overrides)), config, directory
        self.stages = plan(self.config, "data")


@pytest.mark.parametrize("config", ["smoke", "switch-base-all"])
def test_what_travels_is_small(config, tmp_path):
    """A task gets names and settings, and returns nothing."""
    pin = "teacher.checkpoints={e8: some/switch@" + "a" * 40 + "}"
    overrides = [pin, "baseline.checkpoint=null", f"data.tokenizer=t5@{'a' * 40}"] if config != "smoke" else []
    workspace = Planned(tmp_path, config, *overrides)
    pickle = pytest.importorskip("cloudpickle")
    for stage in workspace.stages:
        assert len(pickle.dumps((compute, order_of(workspace, stage)))) < 16_384
    assert compute.__annotations__["return"] is None


def test_without_ray_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setattr(ray_engine, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'^--engine ray needs .* pip install "switch-distill\[ray\]"$'):
        check_engine(None)


@needs_ray
@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1", "ray://127.0.0.1:1", "127.0.0.1:99999", "a:b:c"])
def test_a_wrong_address_is_refused_before_anything_is_written(cli, tmp_path, address):
    done = cli("run", "smoke", "--engine", "ray", "--address", address, "--workdir", str(tmp_path / "work"))
    assert done.returncode == 2 and f"no Ray cluster answers at {address!r}" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "work").exists()


def test_ray_is_imported_only_for_its_engine():
    code = "import sys, pipelines.cli.app, pipelines.runner.ray_engine; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_node_without_the_directory_says_so(tmp_path):
    order = ray_engine.Order("{}", "smoke", str(tmp_path / "elsewhere"), "work", "f", "teacher e2")
    before = os.getcwd()
    with pytest.raises(StageFailed) as raised:
        compute(order)
    sentence, code = raised.value.args
    assert code == 2 and f"elsewhere is not on {socket.gethostname()}" in sentence and os.getcwd() == before
