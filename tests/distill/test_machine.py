import os

import pytest
import torch

from distill.machine import continued, machine_facts
from distill.training import make_accelerator


def test_the_facts_are_those_of_torch(monkeypatch):
    facts = machine_facts(make_accelerator("float32"))
    assert facts["threads"] == str(torch.get_num_threads()) and int(facts["threads.interop"]) > 0
    assert facts["instruction_set"] == torch.backends.cpu.get_cpu_capability()
    assert facts["precision"] == "float32" and facts["processes"] == "1" and facts["parallelism"] == "none"
    assert facts["processor"] and facts["platform"]
    torch.set_num_threads(2)
    try:
        assert machine_facts(make_accelerator("float32"))["threads"] == "2"
    finally:
        torch.set_num_threads(1)


def test_a_run_that_goes_on_elsewhere_says_both():
    before = {"threads": "2", "host": "a", "kept": "x"}
    assert continued(before, {"threads": "2", "host": "b", "new": "1"}) == {"host": "a, then b", "new": "1"}
    assert continued({"host": "a, then b"}, {"host": "a"}) == {}
    assert continued({"host": "a, then b"}, {"host": "c"}) == {"host": "a, then b, then c"}


@pytest.mark.parametrize("version", ["1", "2"])
def test_accelerate_and_transformers_do_not_hear_of_fsdp(monkeypatch, version):
    """Neither may shard by itself, nor leave the weights of all processes but the first empty."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", version)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    assert getattr(make_accelerator("float32").state, "fsdp_plugin", None) is None
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false" and os.environ["ACCELERATE_USE_FSDP"] == "true"
