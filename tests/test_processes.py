"""Several processes give the examples, losses and files of one; so does a run that was stopped or killed."""

import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from distill.training.loop import make_accelerator
from tests import processes
from tests.conftest import ROOT

KINDS = list(processes.OPTIMIZERS)
DDP, FSDP2 = ("--multi_gpu",), ("--use_fsdp", "--fsdp_version", "2")


def launch(*arguments: str, how: tuple[str, ...] = DDP) -> subprocess.CompletedProcess:
    """Two processes on this machine; ``accelerate launch --cpu`` would start one."""
    options = ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *how, *options, "--main_process_port", "0", "-m"]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run([*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


class Both(NamedTuple):
    """Two processes that have run all of ``tests.processes``."""

    how: tuple[str, ...]
    ranks: list[dict]  # the observations of each process
    directory: Path  # the files that they wrote


def ranks(directory: Path) -> list[dict]:
    return [json.loads((directory / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    results = processes.courses(data, tmp_path_factory.mktemp("alone"), make_accelerator("float32"))
    return json.loads(json.dumps(results))  # steps as strings, as in the JSON files


@pytest.fixture(scope="module", params=[DDP, pytest.param(FSDP2, marks=pytest.mark.slow)], ids=["DDP", "FSDP2"])
def both(request, data, tmp_path_factory):
    directory = tmp_path_factory.mktemp("both")
    done = launch("tests.processes", str(directory), data.directory, how=request.param)
    assert done.returncode == 0, done.stderr
    return Both(request.param, ranks(directory), directory)


def in_order(data) -> list[str]:
    count = processes.TRAINING.steps * processes.TRAINING.batch_size
    found = processes.identities(processes.make_examples(data).batch(range(count)))
    assert len(set(found)) == count
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_see_every_example_once_and_in_order(data, both, kind):
    examples = iter(in_order(data))
    micro = processes.TRAINING.micro_batch_size
    for step in range(1, processes.TRAINING.steps + 1):
        shares = [iter(rank[kind]["seen"][str(step)]) for rank in both.ranks]
        for _ in range(processes.TRAINING.batch_size // micro // 2):
            for share in shares:
                assert [next(share) for _ in range(micro)] == [next(examples) for _ in range(micro)]
        assert not any(list(share) for share in shares)


@pytest.mark.parametrize("case", [*KINDS, "teacher resumed", "baseline diverged"])
def test_two_processes_have_the_losses_of_one(alone, both, case):
    """With dropout, jitter and expert capacity: forward passes do not depend on the process."""
    for rank in both.ranks:
        assert rank["processes"] == 2
        assert rank[case]["losses"] == pytest.approx(alone[case]["losses"], abs=2e-5)
        np.testing.assert_allclose(rank[case]["test"], alone[case]["test"], atol=2e-5)
    assert len(alone[case]["test"]) == 12 and len(set(alone[case]["test"])) == 12


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_share_out_the_answers(alone, both, kind):
    assert len(alone[kind]["answers"]) == 12
    assert all(rank[kind]["answers"] == alone[kind]["answers"] for rank in both.ranks)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_training_twice_gives_the_same_bits(alone, both, kind):
    for results in (alone, *both.ranks):
        assert results[kind]["weights"] == results[f"{kind} again"]["weights"]
    assert both.ranks[0][kind]["weights"] == both.ranks[1][kind]["weights"]


@pytest.mark.slow
def test_two_threads_give_the_same_bits_twice(data, tmp_path):
    torch.set_num_threads(2)
    try:
        runs = [processes.course("teacher", data, tmp_path / name, make_accelerator("float32")) for name in "ab"]
    finally:
        torch.set_num_threads(1)
    assert runs[0]["weights"] == runs[1]["weights"]


def test_a_resumed_training_of_two_processes_ends_with_the_same_bits(both):
    for rank in both.ranks:
        assert list(rank["teacher resumed"]["losses"]) == ["4", "5", "6", "7", "8"]
        assert rank["teacher resumed"]["weights"] == rank["teacher"]["weights"]


def test_only_the_first_process_writes(both):
    first, second = both.ranks
    assert not second["changed"] and len(first["changed"]) > 100  # counted in the same way


def test_one_process_goes_on_from_the_checkpoint_of_two(data, both, alone, tmp_path):
    for kind in ("teacher", "baseline"):
        before = tmp_path / kind
        before.mkdir()
        (before / "step-00000006").symlink_to(both.directory / kind / "step-00000006")
        rest = processes.course(kind, data, before, make_accelerator("float32"))
        assert list(rest["losses"]) == [7, 8]
        np.testing.assert_allclose(rest["test"], alone[kind]["test"], atol=2e-5)


@pytest.mark.parametrize("stops", [(1,), (3, 4), (2, 5, 7)])
def test_a_run_that_is_stopped_reads_no_example_twice_and_skips_none(data, tmp_path, stops):
    """Checked by the model's inputs, in the attempt of the last checkpoint."""
    seen, accelerator = {}, make_accelerator("float32")
    for stop in (*stops, None):
        die = (stop, KeyboardInterrupt()) if stop else None
        part = processes.course("baseline", data, tmp_path, accelerator, die=die)["seen"]
        for step in part.keys() & seen.keys():
            assert part[step] == seen[step]  # steps after the last checkpoint are repeated with the same examples
        seen |= part
    assert [one for step in sorted(seen) for one in seen[step]] == in_order(data)


@pytest.mark.slow  # starts four processes; test_launch tests the message of a lost process
def test_a_killed_process_ends_the_others_and_the_next_start_goes_on(data, both, tmp_path):
    arguments = ["tests.processes", str(tmp_path), data.directory, "--only", "baseline"]
    done = launch(*arguments, "--kill-at", "5", how=both.how)
    assert time.time() - (tmp_path / "killed").stat().st_mtime < 30
    assert done.returncode and "rank      : 1" in done.stderr and "Signal 9 (SIGKILL)" in done.stderr
    assert launch(*arguments, how=both.how).returncode == 0
    for rank, unharmed in zip(ranks(tmp_path), both.ranks, strict=True):
        assert list(rank["baseline"]["losses"]) == ["4", "5", "6", "7", "8"]
        assert rank["baseline"]["weights"] == unharmed["baseline"]["weights"]


def test_two_processes_that_share_the_weights_have_the_losses_of_one(data, alone, tmp_path):
    done = launch("tests.processes", str(tmp_path), data.directory, "--only", "teacher", how=FSDP2)
    assert done.returncode == 0, done.stderr
    for rank in ranks(tmp_path):
        assert rank["teacher"]["losses"] == pytest.approx(alone["teacher"]["losses"], abs=2e-5)
        np.testing.assert_allclose(rank["teacher"]["test"], alone["teacher"]["test"], atol=2e-5)


RUNS = ("baseline", "distill e2", "init e2", "long-baseline", "report", "teacher e2")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "divided"), [(DDP, "false"), (FSDP2, "true")], ids=["DDP", "FSDP2 and divided experts"]
)
def test_a_pipeline_of_two_processes_reports_what_that_of_one_does(cli, how, divided, tmp_path):
    overrides = ["precision=float32", "teacher.experts=[2]", f"distill.expert_parallel={divided}"]
    overrides += [f"{section}.training.micro_batch_size=4" for section in ("teacher", "distill")]
    command = ["run", "smoke", "--json", *(f"--set={override}" for override in overrides), "--workdir"]
    alone = json.loads(cli(*command, str(tmp_path / "one")).stdout)
    done = launch("pipelines.cli", *command, str(tmp_path / "two"), how=how)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["baseline"]["quality"] == pytest.approx(alone["baseline"]["quality"], abs=1e-4)
    for name in ("teacher_quality", "student_quality"):
        assert report["ratios"][0][name] == pytest.approx(alone["ratios"][0][name], abs=1e-4)
    with sqlite3.connect(tmp_path / "two" / "mlflow.db") as store:
        runs = store.execute("SELECT name, status FROM runs ORDER BY 1").fetchall()
        kinds = store.execute("SELECT DISTINCT value FROM tags WHERE key = 'parallelism'").fetchall()
    assert runs == [(name, "FINISHED") for name in RUNS]
    assert kinds == [("DDP" if how == DDP else "FSDP2",)]
