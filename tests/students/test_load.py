"""Loading of a dense T5. ``tests/pipelines/wrong_inputs.txt`` has more directories that are refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5ForConditionalGeneration

from distill.errors import UserError
from distill.models.build import build_dense
from distill.models.directory import check_weights
from students.load import check_tensors, load_dense


@pytest.fixture
def directory(shape, tmp_path):
    """A T5 that was saved in bfloat16 in several files, with an obsolete tensor of T5."""
    model = build_dense(shape, 128, pad=0, eos=1, seed=0).to(torch.bfloat16)
    obsolete = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    state = {**model.state_dict(), obsolete: torch.zeros(32, 2)}
    model.save_pretrained(tmp_path, state_dict=state, max_shard_size="20kB")
    assert obsolete in json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    return tmp_path


def test_a_t5_is_loaded_in_float32_as_by_transformers(directory):
    check_tensors(str(directory), check_weights(str(directory), "it"), "it")
    model, expected = load_dense(str(directory), "it"), T5ForConditionalGeneration.from_pretrained(directory)
    assert not model.training and model.dtype == torch.float32
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor.float()), name


@pytest.mark.parametrize(
    "change,says",
    [
        (
            lambda state: state.pop("encoder.final_layer_norm.weight"),
            "1 missing tensors for its config, such as encoder",
        ),
        (
            lambda state: state.update({"encoder.final_layer_norm.weight": torch.zeros(9)}),
            r"\(9,\), its config says \(16,\)",
        ),
    ],
)
def test_a_tensor_that_does_not_match_the_config_is_named(shape, tmp_path, change, says):
    build_dense(shape, 128, pad=0, eos=1, seed=0).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=says):
        check_tensors(str(tmp_path), check_weights(str(tmp_path), "it"), "it")
    with pytest.raises(UserError, match=says):
        load_dense(str(tmp_path), "it")
