import os

import pytest
import torch

from distill.training.loop import make_accelerator
from distill.training.machine import machine_facts


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


@pytest.mark.parametrize("version", ["1", "2"])
def test_accelerate_and_transformers_do_not_hear_of_fsdp(monkeypatch, version):
    """Neither library may shard the model, nor leave weights empty in all processes but the first."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", version)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    assert getattr(make_accelerator("float32").state, "fsdp_plugin", None) is None
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false" and os.environ["ACCELERATE_USE_FSDP"] == "true"
