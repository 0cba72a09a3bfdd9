"""The check before loading accepts every directory that transformers or ``save_teacher`` writes.

``tests/pipelines/wrong_inputs.txt`` has those that it refuses."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

from distill.errors import UserError
from distill.models.header import shape_of
from teachers import load_teacher, save_teacher
from teachers.build import build_teacher
from teachers.check import check_teacher
from teachers.config import TeacherConfig

SIZES = {"vocab_size": 64, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_heads": 2, "num_experts": 3}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": False},
        {"num_layers": 3, "num_decoder_layers": 2, "num_sparse_encoder_layers": 3, "num_sparse_decoder_layers": 1},
        {"num_layers": 4, "num_decoder_layers": None, "num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 0},
        {"num_layers": 5, "num_decoder_layers": 1, "num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 2},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_transformers_saves_is_accepted(tmp_path, changes, dtype):
    layers = {"num_layers": 2, "num_decoder_layers": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}
    config = SwitchTransformersConfig(**SIZES, **{**layers, **changes})
    SwitchTransformersForConditionalGeneration(config).to(dtype).save_pretrained(tmp_path, max_shard_size="20kB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    header = check_teacher(str(tmp_path))
    assert header.differences == ()
    assert (header.experts, header.pad, header.eos) == (3, 0, 1)
    assert (
        header.shape.items() >= {"vocab_size": 64, "d_ff": 24, "num_decoder_layers": config.num_decoder_layers}.items()
    )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
def test_what_we_save_is_accepted_and_without_any_tensor_is_not(tmp_path, shape, feed_forward, tied):
    shape = shape.model_copy(update={"feed_forward": feed_forward, "tie_word_embeddings": tied})
    save_teacher(build_teacher(shape, TeacherConfig(experts=[2]), 64, 2, pad=0, eos=1, seed=0), tmp_path)
    header = check_teacher(str(tmp_path))
    assert header.shape == shape_of(shape, 64) and header.experts == 2
    state = load_file(tmp_path / "model.safetensors")
    for name in sorted(state)[::4]:
        rest = {other: tensor for other, tensor in state.items() if other != name}
        save_file(rest, tmp_path / "model.safetensors", metadata={"format": "pt"})
        if "embed_tokens" in name:  # the embeddings of both stacks are the shared one
            check_teacher(str(tmp_path))
        else:
            with pytest.raises(UserError, match=rf"(missing tensors for a Switch Transformer, such as|has no) {name}"):
                check_teacher(str(tmp_path))


def test_a_loaded_teacher_is_finite(tmp_path, shape):
    teacher = build_teacher(shape, TeacherConfig(experts=[2]), 64, 2, pad=0, eos=1, seed=0)
    torch.nn.init.constant_(teacher.shared.weight, float("nan"))
    save_teacher(teacher, tmp_path)
    with pytest.raises(UserError, match="weights in shared.weight that are NaN or infinite"):
        load_teacher(tmp_path)


def test_values_are_read_where_they_are_asked_for(tmp_path, shape):
    teacher = build_teacher(shape, TeacherConfig(experts=[2]), 64, 2, pad=0, eos=1, seed=0)
    torch.nn.init.constant_(teacher.shared.weight, float("inf"))
    save_teacher(teacher, tmp_path)
    assert check_teacher(str(tmp_path), finite=False).experts == 2
    with pytest.raises(UserError, match="NaN or infinite"):
        check_teacher(str(tmp_path))
