"""The memory of a teacher from headers, against the parameters of the teacher in memory."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from distill.config import ModelConfig
from teachers.build import build_teacher, switch_layers
from teachers.config import SwitchConfig
from teachers.load import open_teacher, read_teacher
from teachers.needs import BatchShape, needs_of
from teachers.save import save_teacher
from tests.teachers.plain_teacher import save_plain_teacher

BATCH = BatchShape(4, 32, 12)


def plain(directory: Path) -> None:
    save_plain_teacher(directory)


def untied(directory: Path) -> None:
    save_plain_teacher(directory, tie_word_embeddings=False)


def gated(directory: Path) -> None:
    shape = ModelConfig(d_model=16, d_ff=32, d_kv=8, num_heads=2, num_layers=2, feed_forward="gated-gelu")
    save_teacher(build_teacher(shape, SwitchConfig(), 64, 4, pad=0, eos=1, seed=0), directory)


def converted(directory: Path, dtype: torch.dtype, kept: str) -> None:
    """Convert a teacher's weights, except those with ``kept`` in their names."""
    values = load_file(directory / "model.safetensors")
    values = {name: value if kept in name else value.to(dtype) for name, value in values.items()}
    save_file(values, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("make", [plain, untied, gated])
@pytest.mark.parametrize(
    "dtype,kept",
    [(torch.float32, ""), (torch.bfloat16, "router"), (torch.float16, "nothing"), (torch.bfloat16, "expert_1.wi.")],
)
@pytest.mark.parametrize("compute_dtype", [None, torch.float32, torch.bfloat16])
def test_bytes_of_weights_are_those_in_memory(tmp_path, make, dtype, kept, compute_dtype):
    make(tmp_path)
    converted(tmp_path, dtype, kept)
    stored = open_teacher(str(tmp_path))
    model = read_teacher(stored, SwitchConfig(), compute_dtype=compute_dtype)
    precision = None if compute_dtype is None else str(compute_dtype).removeprefix("torch.")
    tied = stored.config.tie_word_embeddings
    needs = needs_of(stored.layout, stored.reader.tensors, SwitchConfig(), precision, BATCH, tied=tied)
    experts = {
        name.partition(".layer.")[0]: sum(
            weight.nbytes for weight in (layer.mlp.wi, layer.mlp.wi_gate, layer.mlp.wo) if weight is not None
        )
        for name, layer in switch_layers(model)
    }
    assert needs.layers == experts
    assert needs.non_experts + needs.experts == sum(parameter.nbytes for parameter in model.parameters())
    assert needs.blocks == len(model.encoder.block) + len(model.decoder.block)
    assert needs.whole == needs.non_experts + needs.experts + needs.working
    assert BATCH.state_bytes(16) == 4 * 4 * 16 * (32 + 12)
    assert needs.by_layer == needs.non_experts + max(experts.values()) + needs.working
    own = read_teacher(stored, SwitchConfig(), compute_dtype=compute_dtype, process=1, processes=2)
    divided = needs.divided(2)
    assert divided.non_experts + divided.experts == sum(parameter.nbytes for parameter in own.parameters())
