"""Teachers against transformers' own Switch model."""

import contextlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration, T5Config, T5Model

from distill.errors import UserError
from distill.models.t5_forward import hidden_states
from distill.training.loop import make_accelerator
from teachers import load_teacher, save_teacher
from teachers.config import TeacherConfig
from teachers.model import build_teacher, switch_layers
from teachers.routing import MeasuredRouting, measured_routing
from teachers.train_module import HardLabelsAndLoadBalance

NO_DROPPING = TeacherConfig(experts=[4], capacity_factor_eval=4.0)


def plain(tmp_path, **changes) -> SwitchTransformersForConditionalGeneration:
    """A model made and saved by transformers alone, with random weights that make every part matter."""
    config = SwitchTransformersConfig(
        vocab_size=64,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=4,
        num_decoder_layers=4,
        num_sparse_encoder_layers=2,
        num_sparse_decoder_layers=2,
        num_heads=2,
        num_experts=4,
        expert_capacity=10_000,
        decoder_start_token_id=0,
        **changes,
    )
    torch.manual_seed(0)
    model = SwitchTransformersForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "plain")
    return model


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return {"input_ids": torch.randint(2, 64, (3, 20)), "labels": torch.randint(2, 64, (3, 9))}


@pytest.mark.parametrize("activation", ["relu", "gelu_new"])
@pytest.mark.parametrize("tied", [True, False])
def test_equals_transformers_both_ways(tmp_path, batch, activation, tied):
    theirs = plain(tmp_path, dense_act_fn=activation, tie_word_embeddings=tied)
    ours = load_teacher(tmp_path / "plain", NO_DROPPING)
    assert len(switch_layers(ours)) == 4 and not ours.training
    torch.testing.assert_close(ours(**batch).logits, theirs(**batch).logits, rtol=1e-4, atol=1e-4)

    save_teacher(ours, tmp_path / "saved")
    read = SwitchTransformersForConditionalGeneration.from_pretrained(tmp_path / "saved").eval()
    torch.testing.assert_close(read(**batch).logits, ours(**batch).logits, rtol=1e-4, atol=1e-4)
    again = load_teacher(tmp_path / "saved", NO_DROPPING)
    torch.testing.assert_close(again(**batch).logits, ours(**batch).logits, rtol=0, atol=0)


def test_states_of_sparse_layers_are_those_of_transformers(tmp_path, batch):
    theirs, expected = plain(tmp_path), []
    for stack in (theirs.encoder, theirs.decoder):
        for block in stack.block:
            if block.layer[-1].is_sparse:
                block.layer[-1].mlp.register_forward_hook(lambda module, args, output: expected.append(output))
    theirs(**batch)
    states = []
    hidden_states(load_teacher(tmp_path / "plain", NO_DROPPING), **batch, states=states)
    assert [state.sparse for state in states] == [False, True] * 4
    found = [state.ffn for state in states if state.sparse]
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


@pytest.mark.parametrize("feed_forward", ["relu", "gelu", "gated-gelu"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_built_teacher_survives_saving(tmp_path, shape, batch, feed_forward, tied):
    shape = shape.model_copy(update={"feed_forward": feed_forward, "tie_word_embeddings": tied})
    built = build_teacher(shape, NO_DROPPING, 64, 4, pad=0, eos=1, seed=3).eval()
    save_teacher(built, tmp_path / "saved")
    torch.testing.assert_close(
        load_teacher(tmp_path / "saved", NO_DROPPING)(**batch).logits, built(**batch).logits, rtol=0, atol=0
    )
    for name, weight in built.named_parameters():
        if ".mlp.w" in name and weight.ndim == 2:  # a dense FFN, drawn as T5 does it
            assert weight.std().item() == pytest.approx(weight.shape[1] ** -0.5, rel=0.15), name
    again = build_teacher(shape, NO_DROPPING, 64, 4, pad=0, eos=1, seed=3).eval()
    torch.testing.assert_close(again(**batch).logits, built(**batch).logits, rtol=0, atol=0)


@pytest.mark.parametrize("feed_forward,named", [("gelu", "gelu"), ("gated-gelu", "gated-gelu")])
def test_plain_transformers_refuses_a_gated_teacher(tmp_path, shape, feed_forward, named):
    """It has no gates, and would draw at random the FFNs that it does not find."""
    shape = shape.model_copy(update={"feed_forward": feed_forward})
    save_teacher(build_teacher(shape, NO_DROPPING, 64, 4, pad=0, eos=1, seed=0), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dense_act_fn"] == named
    with pytest.raises(KeyError, match="gated-gelu") if named != "gelu" else contextlib.nullcontext():
        SwitchTransformersForConditionalGeneration.from_pretrained(tmp_path)


def test_saving_into_a_directory_leaves_its_other_files(tmp_path, shape):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    (tmp_path / "mine" / "config.json").write_text("old")
    save_teacher(build_teacher(shape, NO_DROPPING, 64, 4, pad=0, eos=1, seed=0), tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"
    assert len(switch_layers(load_teacher(tmp_path / "mine"))) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


def test_hidden_states_and_head_give_the_logits(tmp_path, batch):
    for tied in (True, False):
        plain(tmp_path, tie_word_embeddings=tied)
        model = load_teacher(tmp_path / "plain", NO_DROPPING)
        hidden, head = hidden_states(model, **batch)
        torch.testing.assert_close((hidden @ head.T).view(3, 9, 64), model(**batch).logits)


def test_padding_is_neither_routed_nor_counted(tmp_path, batch):
    plain(tmp_path)
    model = load_teacher(tmp_path / "plain", TeacherConfig(experts=[4], capacity_factor_eval=1.0))
    alone = model(**batch).logits
    padded_ids = torch.cat([batch["input_ids"], torch.zeros(3, 15, dtype=torch.long)], 1)
    mask = torch.cat([torch.ones(3, 20), torch.zeros(3, 15)], 1).long()
    padded = model(input_ids=padded_ids, attention_mask=mask, labels=batch["labels"]).logits
    torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-4)


def test_generates_with_a_cache(tmp_path, batch):
    theirs = plain(tmp_path)
    ours = load_teacher(tmp_path / "plain", NO_DROPPING)
    arguments = {"input_ids": batch["input_ids"], "max_new_tokens": 8, "do_sample": False}
    assert torch.equal(ours.generate(**arguments), theirs.generate(**arguments))


def test_the_objective_adds_one_load_balancing_loss_per_layer(shape, batch):
    model = build_teacher(shape, TeacherConfig(experts=[4], jitter=0.0), 64, 4, pad=0, eos=1, seed=0)
    total, metrics = HardLabelsAndLoadBalance(model, load_balancing_weight=0.5)(**batch)
    balance = sum(layer.statistics.load_balancing_loss.item() for _, layer in switch_layers(model))
    tokens = batch["labels"].numel()
    assert total.item() == pytest.approx(float(metrics["loss"]) + 0.5 * balance * tokens, rel=1e-5)
    assert float(metrics["load_balancing_loss"]) / tokens == pytest.approx(balance / 2, rel=1e-5)
    logits = model(**batch).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
    assert float(metrics["loss"]) / tokens == pytest.approx(float(expected), rel=1e-5)


def test_a_layer_that_sends_all_tokens_to_one_expert_is_named():
    load = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.0, 0.9999, 0.0001, 0.0]])
    nothing = torch.zeros(2)
    routing = MeasuredRouting(["encoder.1", "decoder.1"], load, nothing, nothing)
    assert routing.collapsed() == "all tokens of decoder.1 go to expert 1"
    assert routing._replace(load=torch.tensor([[0.25] * 4, [0.0, 0.99, 0.01, 0.0]])).collapsed() is None
    assert routing._replace(load=torch.ones(2, 1)).collapsed() is None


def test_measured_routing_averages_layers_and_batches(shape, batch):
    model = build_teacher(shape, NO_DROPPING, 64, 4, pad=0, eos=1, seed=0).eval()
    with measured_routing(model) as routing:
        model(**batch)
        model(**batch)
    layers = [layer.statistics for _, layer in switch_layers(model)]
    measured = routing(make_accelerator("float32"))
    values, curves = measured.headlines(), measured.curves()
    assert values["router_entropy"] == pytest.approx(sum(float(s.entropy) for s in layers) / 2, rel=1e-5)
    assert values["load_max"] == pytest.approx(max(float(s.load.max()) for s in layers) * 4, rel=1e-5)
    assert values["dropped_fraction"] == 0
    assert measured.layers == ["encoder.1", "decoder.1"]
    assert curves["routing/decoder.1/router_entropy"] == pytest.approx(float(layers[1].entropy), rel=1e-5)
    loads = [curves[f"routing/encoder.1/load/expert{expert:03d}"] for expert in range(4)]
    assert loads == pytest.approx((layers[0].load * 4).tolist(), rel=1e-5) and sum(loads) == pytest.approx(4)


class TestBadCheckpoints:
    def edit(self, tmp_path, change):
        plain(tmp_path)
        path = tmp_path / "plain" / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})
        return tmp_path / "plain"

    def test_missing_tensor(self, tmp_path):
        name = "encoder.block.1.layer.1.mlp.experts.expert_2.wi.weight"
        with pytest.raises(UserError, match=f"1 missing tensors for its config, such as {name}"):
            load_teacher(self.edit(tmp_path, lambda tensors: tensors.pop(name)))

    def test_unexpected_tensor(self, tmp_path):
        with pytest.raises(UserError, match=r"1 unexpected tensors.*surprise"):
            load_teacher(self.edit(tmp_path, lambda tensors: tensors.update(surprise=torch.zeros(1))))

    def test_another_shape(self, tmp_path):
        with pytest.raises(UserError, match=r"has shared.weight of shape \(3, 16\), its config says \(64, 16\)"):
            load_teacher(self.edit(tmp_path, lambda tensors: tensors.update({"shared.weight": torch.zeros(3, 16)})))

    def test_truncated_file(self, tmp_path):
        plain(tmp_path)
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
        plain(tmp_path)
        path = tmp_path / "plain" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "router_bias": True}))
        with pytest.raises(UserError, match="router with a bias"):
            load_teacher(tmp_path / "plain")

    def test_empty_directory(self, tmp_path):
        with pytest.raises(UserError, match="cannot be loaded"):
            load_teacher(tmp_path)
