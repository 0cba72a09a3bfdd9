import pytest
import torch

from distill.config import ModelConfig
from teachers import save_teacher
from teachers.build import build_teacher
from teachers.config import SwitchConfig
from teachers.layout import is_expert_weight
from teachers.load import open_teacher, read_teacher
from teachers.memory import limit_of, needs
from teachers.needs import BatchShape

BATCH = BatchShape(3, 20, 9)


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stored_in", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("feed_forward,tied", [("relu", True), ("gated-gelu", False)])
def test_bytes_of_weights_are_those_of_the_model_in_memory(tmp_path, dtype, stored_in, feed_forward, tied):
    shape = {"feed_forward": feed_forward, "tie_word_embeddings": tied}
    shape = ModelConfig(d_model=16, d_ff=32, d_kv=8, num_heads=2, num_layers=4, **shape)
    save_teacher(build_teacher(shape, SwitchConfig(), 64, 4, pad=0, eos=1, seed=0).to(stored_in), tmp_path)
    stored = open_teacher(str(tmp_path))
    before = stored.reader.bytes_read
    needed = needs(stored, SwitchConfig(), dtype, BATCH)
    assert stored.reader.bytes_read == before
    weights = {True: 0, False: 0}
    for name, parameter in read_teacher(stored, SwitchConfig(), compute_dtype=dtype).named_parameters():
        weights[is_expert_weight(name)] += parameter.nbytes
    copies = 0 if tied else 2 * 64 * 16 * (2 if stored_in == torch.bfloat16 and dtype != torch.float32 else 4)
    assert needed.experts == weights[True] == sum(needed.layers.values())
    assert needed.non_experts == weights[False] + copies  # equal embeddings in the files become one in memory
    assert list(needed.layers) == [f"{stack}.block.{block}" for stack in ("encoder", "decoder") for block in (1, 3)]
    assert needed.blocks == 8 and needed.whole == needed.non_experts + needed.experts + needed.working


def test_activations_grow_with_the_batch(tmp_path):
    shape = ModelConfig(d_model=16, d_ff=32, d_kv=8, num_heads=2, num_layers=2)
    save_teacher(build_teacher(shape, SwitchConfig(), 64, 4, pad=0, eos=1, seed=0), tmp_path)
    stored = open_teacher(str(tmp_path))
    few, more, longer = (
        needs(stored, SwitchConfig(), torch.float32, BatchShape(*size)).working
        for size in ((8, 100, 20), (16, 100, 20), (8, 400, 20))
    )
    assert 1.8 * few < more < 2.2 * few and longer > 8 * few  # scores of attention are quadratic in the length


def test_a_given_limit_is_taken_on_a_cpu(monkeypatch):
    monkeypatch.setattr("teachers.memory.memory_limit", lambda: 7)
    assert limit_of(10**15, torch.device("cpu")) == 10**15 and limit_of(None, torch.device("cpu")) == 7


def test_a_gpu_limits_what_is_given(monkeypatch):
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (80, 100))
    device = torch.device("cuda")
    assert limit_of(None, device) == limit_of(10**15, device) == 64 and limit_of(50, device) == 50
