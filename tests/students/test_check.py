import json

import pytest
import torch
from transformers import T5ForConditionalGeneration

from distill.models.build import build_dense
from distill.models.header import differences, shape_of
from students.check import check_dense

CONFIGS = {
    "plain": {},
    "few keys": {"dense_act_fn": None, "is_gated_act": None, "num_decoder_layers": None, "eos_token_id": None},
    "older": {"scale_decoder_outputs": None, "dense_act_fn": None},
    "old names": {"d_model": None, "hidden_size": 16, "num_layers": None, "num_hidden_layers": 2},
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
def test_a_t5_saved_by_transformers_is_accepted_with_its_shape(tmp_path, shape, feed_forward, tied):
    shape = shape.model_copy(update={"feed_forward": feed_forward, "tie_word_embeddings": tied})
    build_dense(shape, 128, pad=0, eos=1, seed=0).save_pretrained(tmp_path)
    header = check_dense(str(tmp_path), "it")
    assert header.shape == shape_of(shape, 128)
    assert (header.vocab_size, header.pad, header.eos, header.experts) == (128, 0, 1, None)
    assert differences(header.shape, shape_of(shape, None)) == []
    assert differences(header.shape, shape_of(shape, 256)) == ["vocab_size 128 and 256"]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu", "silu"])
@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_the_header_describes_the_model_that_transformers_builds(tmp_path, shape, feed_forward, tied, changes):
    """Configs of older versions lack some keys."""
    shape = shape.model_copy(update={"feed_forward": "relu" if feed_forward == "silu" else feed_forward})
    shape = shape.model_copy(update={"tie_word_embeddings": tied})
    build_dense(shape, 128, pad=0, eos=1, seed=0).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    if feed_forward == "silu":
        values |= {"feed_forward_proj": "silu", "dense_act_fn": "silu"}
    values |= {**changes, "tie_word_embeddings": tied}
    (tmp_path / "config.json").write_text(
        json.dumps({key: value for key, value in values.items() if value is not None})
    )

    found, model = check_dense(str(tmp_path), "it").shape, T5ForConditionalGeneration.from_pretrained(tmp_path)
    assert found["tie_word_embeddings"] == (model.lm_head.weight is model.shared.weight)
    layer = model.encoder.block[0].layer[-1].DenseReluDense
    assert found["feed_forward_proj"].startswith("gated-") == hasattr(layer, "wi_0")
    values = torch.tensor([-1.0, 2.0])
    plain = {"relu": torch.relu, "silu": torch.nn.functional.silu}.get(found["feed_forward_proj"])
    gelu = torch.nn.functional.gelu(values, approximate="tanh")
    torch.testing.assert_close(layer.act(values), plain(values) if plain else gelu)
    for name in found.keys() - {"tie_word_embeddings", "feed_forward_proj"}:
        assert found[name] == getattr(model.config, name)
