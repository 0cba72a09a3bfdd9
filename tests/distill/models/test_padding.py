"""Padded batches: the examples compared with themselves alone, and with transformers under attention masks."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.config import ModelConfig
from distill.evaluation import negative_log_perplexity
from distill.models import t5_forward
from distill.models.build import build_dense
from distill.models.t5_forward import encode, hidden_states, run_block
from distill.training.train_modules import HardLabels
from teachers.build import build_teacher, switch_layers
from teachers.config import TeacherConfig
from teachers.load import load_teacher
from tests.teachers.plain_teacher import NO_DROPPING, save_plain_teacher

PAD, VOCABULARY, EXPERTS = 0, 64, 4
KINDS = ["dense", "dense-gated-untied", "switch", "switch-gated-untied", "unlimited"]
LENGTHS = [(7, 3), (2, 5), (1, 1), (9, 2)]  # of inputs and targets


@cache
def build(kind: str, capacity_factor: float = EXPERTS):
    """A model in eval mode; by default no token is dropped."""
    name, *changes = kind.split("-")
    gated = {"feed_forward": "gated-gelu", "tie_word_embeddings": False} if changes else {}
    shape = ModelConfig(d_model=16, d_ff=32, d_kv=8, num_heads=2, num_layers=2, sparse_every=1, **gated)
    if name == "dense":
        model = build_dense(shape, VOCABULARY, pad=PAD, eos=1, seed=0)
    else:
        factors = {"capacity_factor_train": capacity_factor, "capacity_factor_eval": capacity_factor}
        settings = TeacherConfig(experts=[EXPERTS], jitter=0.0, **factors)
        model = build_teacher(shape, settings, VOCABULARY, EXPERTS, pad=PAD, eos=1, seed=0)
        for _, layer in switch_layers(model):
            layer.mlp.drops_tokens = name != "unlimited"
    torch.manual_seed(1)
    for parameter in model.parameters():  # norms that are not 1, and routers with a preference
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval()


def examples(lengths):
    """Random ids of each example: input, targets."""
    generator = torch.Generator().manual_seed(sum(map(sum, lengths)))
    return [tuple(torch.randint(2, VOCABULARY, (n,), generator=generator) for n in pair) for pair in lengths]


def padded(pairs):
    """A batch: input_ids [B, S] and labels [B, T]."""
    inputs, targets = (list(part) for part in zip(*pairs, strict=True))
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(inputs, batch_first=True, padding_value=PAD), pad(targets, batch_first=True, padding_value=-100)


def gradients(model, batches):
    """The sum over batches of the gradients of the loss, by name."""
    model.zero_grad()  # earlier results keep their tensors
    for batch in batches:
        HardLabels(model)(*batch)[0].backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=25)
@given(lengths=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 9)), min_size=1, max_size=6))
def test_losses_are_those_of_each_example_alone(kind, lengths):
    pairs = examples(lengths)
    quality, losses = negative_log_perplexity(build(kind), [padded(pairs)])
    alone = [negative_log_perplexity(build(kind), [padded([pair])])[1].item() for pair in pairs]
    np.testing.assert_allclose(losses, alone, rtol=2e-5, atol=1e-6)
    assert quality == pytest.approx(-np.average(alone, weights=[len(targets) for _, targets in pairs]), rel=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_the_sum_of_those_of_each_example_alone(kind):
    model, pairs = build(kind).train(), examples(LENGTHS)
    together = gradients(model, [padded(pairs)])
    alone = gradients(model, [padded([pair]) for pair in pairs])
    model.eval()
    assert together.keys() == alone.keys()
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, alone[name], rtol=1e-4, atol=1e-5 * alone[name].abs().max().item())


def test_hidden_states_in_float64_are_those_of_each_example_alone():
    model, pairs = build("dense").double(), examples(LENGTHS)
    with torch.no_grad():
        together = hidden_states(model, *padded(pairs))[0].view(len(pairs), -1, 16)
        alone = [hidden_states(model, *padded([pair]))[0] for pair in pairs]
    model.float()
    for found, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(found[: len(expected)], expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_in_bfloat16_padding_changes_losses_by_no_more_than_rounding(kind):
    model, pairs = build(kind), examples(LENGTHS)
    exact = negative_log_perplexity(model, [padded(pairs)])[1]
    with torch.autocast("cpu", torch.bfloat16):
        together = negative_log_perplexity(model, [padded(pairs)])[1]
        alone = [negative_log_perplexity(model, [padded([pair])])[1].item() for pair in pairs]
    assert abs(together - alone).max() <= max(2 * abs(together - exact).max(), 1e-6)


@pytest.mark.parametrize("kind", ["dense", "dense-gated-untied"])
def test_outputs_and_gradients_are_those_of_transformers_with_an_attention_mask(kind):
    model, (inputs, labels) = build(kind), padded(examples(LENGTHS))
    hidden, head = hidden_states(model, inputs, labels)
    ours = gradients(model, [(inputs, labels)])
    model.zero_grad()
    output = model(input_ids=inputs, attention_mask=(inputs != PAD).long(), labels=labels)
    counted = labels != -100
    logits = (hidden @ head.T).view_as(output.logits)
    torch.testing.assert_close(logits[counted], output.logits[counted], rtol=1e-4, atol=1e-4)
    (output.loss * counted.sum()).backward()
    plain = {name: parameter.grad for name, parameter in model.named_parameters()}
    model = copy.deepcopy(model).double()
    model.zero_grad()
    exact = model(input_ids=inputs, attention_mask=(inputs != PAD).long(), labels=labels).loss
    (exact * counted.sum()).backward()

    def error(gradients):
        """The largest difference from those in float64, relative to the largest gradient of a parameter."""
        return max(
            float((gradients[name] - one.grad).abs().max() / one.grad.abs().max())
            for name, one in model.named_parameters()
        )

    assert error(ours) <= 2 * error(plain) < 1e-4  # as precise as transformers in float32


def test_a_teacher_computes_what_plain_transformers_computes_with_an_attention_mask(tmp_path):
    """Plain transformers routes padding too, but its capacity is so large that padding displaces no token."""
    plain = save_plain_teacher(tmp_path / "plain")
    inputs, labels = padded(examples(LENGTHS))
    expected = plain(input_ids=inputs, attention_mask=(inputs != PAD).long(), labels=labels).logits
    hidden, head = hidden_states(load_teacher(tmp_path / "plain", NO_DROPPING), inputs, labels)
    counted = labels != -100
    torch.testing.assert_close((hidden @ head.T).view_as(expected)[counted], expected[counted], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("capacity_factor", [EXPERTS, 1.0])
def test_routing_is_that_of_the_tokens_without_padding(capacity_factor):
    """Choice, load, load-balancing loss, entropy and dropped tokens of every layer, in NumPy."""
    lengths = [(9, 9), (4, 7), (12, 2), (1, 5), (8, 8)]
    model, pairs, seen = build("switch", capacity_factor), examples(lengths), []
    handles = [
        layer.mlp.register_forward_hook(lambda module, args, output: seen.append((module, args[0], *output)))
        for _, layer in switch_layers(model)
    ]
    inputs, labels = padded(pairs)
    with torch.no_grad():
        hidden_states(model, inputs, labels)
    for handle in handles:
        handle.remove()
    dropped_somewhere = 0
    for number, (layer, hidden, output, statistics) in enumerate(seen):
        is_token = (inputs != PAD if number < 2 else labels != -100).numpy()
        x = hidden.numpy()[is_token]  # in token order
        logits = x @ layer.router.weight.detach().numpy().T
        probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        chosen, capacity = probs.argmax(-1), max(4, int(len(x) / EXPERTS * capacity_factor))
        load = np.bincount(chosen, minlength=EXPERTS) / len(x)
        position = np.array([(chosen[:n] == expert).sum() for n, expert in enumerate(chosen)])
        np.testing.assert_allclose(statistics.load, load, rtol=1e-6)
        balance = EXPERTS * (load * probs.mean(0)).sum()
        assert statistics.load_balancing_loss.item() == pytest.approx(balance, rel=1e-5)
        assert statistics.entropy.item() == pytest.approx(-(probs * np.log(probs)).sum(-1).mean(), rel=1e-5)
        assert statistics.dropped_fraction.item() == pytest.approx((position >= capacity).mean(), abs=1e-7)
        is_zero = ~output.numpy().any(-1)
        assert is_zero[~is_token].all() and (is_zero[is_token] == (position >= capacity)).all()
        dropped_somewhere += (position >= capacity).sum()
    assert (dropped_somewhere > 0) == (capacity_factor == 1.0)


def test_padding_at_the_end_changes_nothing():
    """Columns of padding alone, which no example needs."""
    inputs, labels = padded(examples(LENGTHS))
    wider = torch.nn.functional.pad(inputs, (0, 5), value=PAD), torch.nn.functional.pad(labels, (0, 3), value=-100)
    for kind in KINDS:
        losses, again = (negative_log_perplexity(build(kind), [batch])[1] for batch in ((inputs, labels), wider))
        np.testing.assert_allclose(again, losses, rtol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_padding_is_computed_without_masks(kind, monkeypatch):
    model, batch, masks = build(kind).train(), padded(examples([(7, 3)] * 4)), []

    def recorded(stack, block, x, mask, *others):
        masks.append(mask)
        return run_block(stack, block, x, mask, *others)

    with monkeypatch.context() as patch:
        patch.setattr(t5_forward, "run_block", recorded)
        hidden = hidden_states(model, *batch)[0].detach()
    assert masks == [None] * 4 and encode(model, batch[0]).mask is None
    found = gradients(model, [batch])
    monkeypatch.setattr(t5_forward, "token_mask", lambda ids, padding: None)
    assert torch.equal(hidden, hidden_states(model, *batch)[0])
    assert all(torch.equal(found[name], gradient) for name, gradient in gradients(model, [batch]).items())
    model.eval()


def test_the_encoder_alone_is_that_of_the_whole_pass():
    model, (inputs, _) = build("switch"), padded(examples(LENGTHS))
    encoded = encode(model, inputs)
    assert torch.equal(encoded.mask, inputs != PAD) and encoded.hidden.shape == (*inputs.shape, 16)
    expected = model.encoder(input_ids=inputs, attention_mask=(inputs != PAD).long()).last_hidden_state
    torch.testing.assert_close(encoded.hidden[encoded.mask], expected[encoded.mask], rtol=1e-4, atol=1e-4)


def test_an_input_of_padding_alone_does_not_spoil_the_others():
    inputs, labels = padded(examples(LENGTHS))
    inputs[1] = PAD
    for kind in KINDS:
        _, losses = negative_log_perplexity(build(kind), [(inputs, labels)])
        expected = negative_log_perplexity(build(kind), [padded(examples(LENGTHS))])[1]
        np.testing.assert_allclose(np.delete(losses, 1), np.delete(expected, 1), rtol=2e-5)
        assert np.isfinite(losses).all()
