"""The memory that loading takes, measured in processes of their own."""

import json

import pytest
import torch

from tests.hub import process
from tests.public_checkpoints import State, all_in, plain_model, plain_state, write_checkpoint

SIZES = {"d_model": 256, "d_ff": 1024, "d_kv": 64, "num_heads": 4, "vocab_size": 512, "num_layers": 2}
SIZES |= {"num_decoder_layers": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}

# Prints by how many MiB resident memory rises above its start, during and after a call; and the bytes of parameters.
_MEASURE = """
import json, sys
import torch
from students import init_student
from teachers import load_teacher
from tests.teachers.test_peak_memory import mebibytes
call, small, large = {"load": load_teacher, "init": init_student}[sys.argv[1]], *sys.argv[2:]
torch.set_num_threads(1)
call(small)  # whatever it imports, and the code of libraries, is in memory from now on
open("/proc/self/clear_refs", "w").write("5")  # the peak from here on
base = mebibytes("VmRSS")
model = call(large)
peak, end = mebibytes("VmHWM"), mebibytes("VmRSS")
print(json.dumps([peak - base, end - base, sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20]))
"""


def mebibytes(entry: str) -> float:
    """An entry of /proc/self/status that is a size."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(f"{entry}:"))


def large_state(experts: int, dtype: torch.dtype) -> State:
    """Two layers with 1 MiB (in float32) for each of two weights of an expert. All experts of a layer are equal."""
    state = plain_state(plain_model(all_in(dtype), **SIZES, num_experts=1), all_in(dtype))
    for name in [name for name in state if ".expert_0." in name]:
        state |= {name.replace(".expert_0.", f".expert_{expert}."): state[name] for expert in range(1, experts)}
    for name in [name for name in state if ".router." in name]:
        state[name] = torch.zeros(experts, SIZES["d_model"], dtype=dtype)
    return state


@pytest.fixture
def measure(tmp_path):
    def run(what: str, experts: int, kind: str, shards: int, dtype: torch.dtype) -> list[float]:
        small, large = tmp_path / "small", tmp_path / f"large-{experts}"
        write_checkpoint(small, plain_state(plain_model()), kind, shards)
        state = {name: value.clone() for name, value in large_state(experts, dtype).items()}
        write_checkpoint(large, state, kind, shards, **SIZES, num_experts=experts)
        del state
        return json.loads(process(_MEASURE, what, str(small), str(large)).stdout)

    return run


@pytest.mark.parametrize(
    "kind,shards,dtype,experts",
    [
        ("safetensors", 1, torch.float32, 96),
        ("safetensors", 3, torch.bfloat16, 192),
        ("bin", 1, torch.bfloat16, 192),
        ("bin", 3, torch.float32, 96),
    ],
)
def test_a_teacher_takes_its_own_size(measure, kind, shards, dtype, experts):
    peak, end, size = measure("load", experts, kind, shards, dtype)
    assert 350 < size < 500
    assert size * 0.98 < end <= peak < size * 1.15, (peak, end, size)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_the_memory_for_a_student_does_not_depend_on_the_number_of_experts(measure, kind):
    few, many = (measure("init", experts, kind, 2, torch.bfloat16)[0] for experts in (4, 128))
    more_in_the_files = (128 - 4) * 4 * 0.5
    assert many - few < 0.05 * more_in_the_files, (few, many)
