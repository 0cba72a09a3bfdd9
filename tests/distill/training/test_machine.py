import os
import platform
import subprocess
import sys

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


ROUNDS = """
import resource, torch
from distill.training.machine import keep_freed_memory

keep_freed_memory()
before = 0
for _ in range(6):
    blocks = [torch.ones(2**26) for _ in range(20)]  # 5 GiB
    del blocks
    now = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    print(now - before)
    before = now
"""


@pytest.mark.slow  # 5 GiB
@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or torch.cuda.is_available(),
    reason="the setting is glibc's, and memory is left alone on a machine with a GPU",
)
def test_more_than_two_gibibytes_of_freed_memory_are_kept():
    """With a limit of 2 GiB, four fifths of the pages are returned and mapped again in every round."""
    done = subprocess.run([sys.executable, "-c", ROUNDS], capture_output=True, text=True, check=True)
    faults = [int(line) for line in done.stdout.split()]
    assert faults[0] > 0 and max(faults[-2:]) < faults[0] / 10


@pytest.mark.parametrize("version", ["1", "2"])
def test_accelerate_and_transformers_do_not_hear_of_fsdp(monkeypatch, version):
    """Neither library may shard the model, nor leave weights empty in all processes but the first."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", version)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    assert getattr(make_accelerator("float32").state, "fsdp_plugin", None) is None
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false" and os.environ["ACCELERATE_USE_FSDP"] == "true"
