"""Options of ``accelerate launch``, and the facts of the machine that a run records."""

import signal
import sys

import pytest
from mlflow import MlflowClient

from distill.errors import UserError
from pipelines.cli import app as cli_module
from pipelines.tracking import store_uri
from pipelines.workdir.preflight import check_launch


@pytest.mark.parametrize(
    "environment,message",
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "--use_deepspeed is not supported; use --multi_gpu"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "--use_megatron_lm is not supported"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "--fsdp_version 1 is not supported; .*version 2"),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"},
            "--fsdp_offload_params true is not supported",
        ),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"},
            "--fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP is not supported",
        ),
    ],
)
def test_unsupported_options_are_refused(monkeypatch, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        check_launch()


def test_fsdp2_is_accepted_with_the_number_of_processes(monkeypatch):
    assert check_launch() == 1
    for name, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert check_launch() == 4


def test_a_refused_launch_is_one_sentence_and_leaves_nothing(cli, tmp_path):
    done = cli("run", "smoke", "--workdir", str(tmp_path / "work"), ACCELERATE_USE_FSDP="true", FSDP_VERSION="1")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "--fsdp_version 2" in done.stderr
    assert not (tmp_path / "work").exists()


def test_every_run_records_the_machine_and_versions(smoke):
    client = MlflowClient(f"sqlite:///{smoke[0]}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("smoke").experiment_id])
    facts = ("precision", "processes", "parallelism", "threads", "instruction_set", "processor", "platform")
    versions = tuple(f"version.{name}" for name in ("python", "torch", "transformers", "tokenizers", "numpy"))
    assert len(runs) > 5
    for run in runs:
        assert all(run.data.tags.get(name) for name in (*facts, *versions))


@pytest.mark.parametrize("processes,code", [("2", "sentence"), ("1", "traceback")])
def test_a_lost_process_is_a_sentence(smoke, monkeypatch, capsys, processes, code):
    def lose(*_):
        raise RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Connection reset by peer.")

    monkeypatch.setenv("WORLD_SIZE", processes)
    monkeypatch.setattr("pipelines.runner.runner.StageRunner.execute", lose)
    monkeypatch.setattr(store_uri, "ASKED_FOR", None)
    monkeypatch.setattr(sys, "argv", ["switch-distill", "teacher", "smoke", "--workdir", str(smoke[0])])
    terminate = signal.getsignal(signal.SIGTERM)
    assert cli_module._main() == 1
    signal.signal(signal.SIGTERM, terminate)
    said = capsys.readouterr().err
    assert ("Traceback" in said) == (code == "traceback")
    assert ("another process of this run has ended; run the same command again" in said) == (code == "sentence")
