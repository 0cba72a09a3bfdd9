"""Loaded teachers compared with transformers' Switch model."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration, T5Config, T5Model

from distill.errors import UserError
from distill.models.t5_forward import hidden_states
from teachers import load_teacher, save_teacher
from teachers.build import switch_layers
from teachers.config import TeacherConfig
from tests.teachers.plain_teacher import NO_DROPPING, save_plain_teacher


@pytest.mark.parametrize("activation", ["relu", "gelu_new"])
@pytest.mark.parametrize("tied", [True, False])
def test_equals_transformers_both_ways(tmp_path, batch, activation, tied):
    theirs = save_plain_teacher(tmp_path / "plain", dense_act_fn=activation, tie_word_embeddings=tied)
    ours = load_teacher(tmp_path / "plain", NO_DROPPING)
    assert len(switch_layers(ours)) == 4 and not ours.training
    torch.testing.assert_close(ours(**batch).logits, theirs(**batch).logits, rtol=1e-4, atol=1e-4)

    save_teacher(ours, tmp_path / "saved")
    read = SwitchTransformersForConditionalGeneration.from_pretrained(tmp_path / "saved").eval()
    torch.testing.assert_close(read(**batch).logits, ours(**batch).logits, rtol=1e-4, atol=1e-4)
    again = load_teacher(tmp_path / "saved", NO_DROPPING)
    torch.testing.assert_close(again(**batch).logits, ours(**batch).logits, rtol=0, atol=0)


def test_states_of_sparse_layers_are_those_of_transformers(tmp_path, batch):
    theirs, expected = save_plain_teacher(tmp_path / "plain"), []
    for stack in (theirs.encoder, theirs.decoder):
        for block in stack.block:
            if block.layer[-1].is_sparse:
                block.layer[-1].mlp.register_forward_hook(lambda module, args, output: expected.append(output))
    theirs(**batch)
    ours, found = load_teacher(tmp_path / "plain", NO_DROPPING), []
    layers = switch_layers(ours)
    sparse = [f"{stack}.block.{block}" for stack in ("encoder", "decoder") for block in (1, 3)]
    assert [name.partition(".layer")[0] for name, _ in layers] == sparse
    for _, layer in layers:
        layer.mlp.register_forward_hook(lambda module, args, output: found.append(output[0]))
    hidden_states(ours, **batch)
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other[0] if isinstance(other, tuple) else other, rtol=1e-4, atol=1e-4)


def test_every_layer_sparse_as_in_switch_c(tmp_path, batch):
    config = {"num_layers": 2, "num_decoder_layers": 2, "num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 2}
    base = SwitchTransformersConfig(vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_heads=2, num_experts=4, **config)
    base.decoder_start_token_id, base.expert_capacity = 0, 10_000
    theirs = SwitchTransformersForConditionalGeneration(base).eval()
    theirs.save_pretrained(tmp_path / "plain")
    ours = load_teacher(tmp_path / "plain", NO_DROPPING)
    assert len(switch_layers(ours)) == 4
    torch.testing.assert_close(ours(**batch).logits, theirs(**batch).logits, rtol=1e-4, atol=1e-4)


def test_hidden_states_and_head_give_the_logits(tmp_path, batch):
    for tied in (True, False):
        save_plain_teacher(tmp_path / "plain", tie_word_embeddings=tied)
        model = load_teacher(tmp_path / "plain", NO_DROPPING)
        hidden, head = hidden_states(model, **batch)
        torch.testing.assert_close((hidden @ head.T).view(3, 9, 64), model(**batch).logits)


def test_padding_is_neither_routed_nor_counted(tmp_path, batch):
    save_plain_teacher(tmp_path / "plain")
    model = load_teacher(tmp_path / "plain", TeacherConfig(experts=[4], capacity_factor_eval=1.0))
    alone = model(**batch).logits
    padded_ids = torch.cat([batch["input_ids"], torch.zeros(3, 15, dtype=torch.long)], 1)
    mask = torch.cat([torch.ones(3, 20), torch.zeros(3, 15)], 1).long()
    padded = model(input_ids=padded_ids, attention_mask=mask, labels=batch["labels"]).logits
    torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-4)


def test_generates_with_a_cache(tmp_path, batch):
    theirs = save_plain_teacher(tmp_path / "plain")
    ours = load_teacher(tmp_path / "plain", NO_DROPPING)
    arguments = {"input_ids": batch["input_ids"], "max_new_tokens": 8, "do_sample": False}
    assert torch.equal(ours.generate(**arguments), theirs.generate(**arguments))


class TestBadCheckpoints:
    def edit(self, tmp_path, change):
        save_plain_teacher(tmp_path / "plain")
        path = tmp_path / "plain" / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})
        return tmp_path / "plain"

    def test_missing_tensor(self, tmp_path):
        name = "encoder.block.1.layer.1.mlp.experts.expert_2.wi.weight"
        with pytest.raises(UserError, match=f"1 missing tensors for a Switch Transformer, such as {name}"):
            load_teacher(self.edit(tmp_path, lambda tensors: tensors.pop(name)))

    def test_unexpected_tensor(self, tmp_path):
        with pytest.raises(UserError, match=r"1 unexpected tensors.*surprise"):
            load_teacher(self.edit(tmp_path, lambda tensors: tensors.update(surprise=torch.zeros(1))))

    def test_another_shape(self, tmp_path):
        with pytest.raises(UserError, match=r"has .*EncDecAttention.o.weight of shape \(3, 16\), .* need \(16, 16\)"):
            name = "decoder.block.2.layer.1.EncDecAttention.o.weight"
            load_teacher(self.edit(tmp_path, lambda tensors: tensors.update({name: torch.zeros(3, 16)})))

    def test_truncated_file(self, tmp_path):
        save_plain_teacher(tmp_path / "plain")
        path = tmp_path / "plain" / "model.safetensors"
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(UserError, match="cannot be loaded"):
            load_teacher(tmp_path / "plain")

    def test_no_switch_model(self, tmp_path):
        T5Model(T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=32)).save_pretrained(
            tmp_path / "t5"
        )
        with pytest.raises(UserError, match="a Switch Transformer is needed"):
            load_teacher(tmp_path / "t5")

    def test_router_bias(self, tmp_path):
        save_plain_teacher(tmp_path / "plain")
        path = tmp_path / "plain" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "router_bias": True}))
        with pytest.raises(UserError, match="router with a bias"):
            load_teacher(tmp_path / "plain")

    def test_empty_directory(self, tmp_path):
        with pytest.raises(UserError, match="cannot be loaded"):
            load_teacher(tmp_path)
