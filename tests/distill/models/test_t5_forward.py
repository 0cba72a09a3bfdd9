"""The forward pass compared with transformers'."""

import pytest
import torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from distill.loss import mixed_cross_entropy
from distill.models.build import freeze, new_t5
from distill.models.t5_forward import hidden_states
from distill.training.precision import multiplies_bfloat16

B, S, T = 3, 21, 9


def build(feed_forward="relu", tied=True, dropout=0.0) -> T5ForConditionalGeneration:
    config = T5Config(
        vocab_size=50,
        d_model=32,
        d_ff=48,
        d_kv=8,
        num_heads=3,
        num_layers=3,
        num_decoder_layers=2,
        feed_forward_proj=feed_forward,
        dropout_rate=dropout,
        tie_word_embeddings=tied,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=12,
        decoder_start_token_id=0,
    )
    model = new_t5(config, seed=0)
    for parameter in model.parameters():  # norms that are not 1, biases that are not small
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture
def ids():
    torch.manual_seed(1)
    labels = torch.randint(2, 50, (B, T))
    labels[0, -2:] = -100
    return torch.randint(2, 50, (B, S)), labels


def loss(logits, labels):
    return nn.functional.cross_entropy(logits.float().flatten(0, -2), labels.flatten())


@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
@pytest.mark.parametrize("tied", [True, False])
def test_outputs_and_gradients_equal_those_of_transformers_in_float32(ids, feed_forward, tied):
    ours, plain = build(feed_forward, tied), build(feed_forward, tied)
    plain.load_state_dict(ours.state_dict())
    expected = plain(input_ids=ids[0], labels=ids[1]).logits
    hidden, head = hidden_states(ours, *ids)
    torch.testing.assert_close((hidden @ head.T).view_as(expected), expected, atol=1e-5, rtol=1e-5)
    loss(expected, ids[1]).backward()
    loss(hidden @ head.T, ids[1]).backward()
    for (name, mine), theirs in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-6, rtol=1e-4, msg=name)


def test_bfloat16_is_as_close_to_float32_as_autocast_on_transformers(ids):
    """The distance of the gradient from that in float32 is at most 1.5 times that of the plain model."""
    models = [build() for _ in range(3)]
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
    loss(models[0](input_ids=ids[0], labels=ids[1]).logits, ids[1]).backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = models[1](input_ids=ids[0], labels=ids[1]).logits
        hidden, head = hidden_states(models[2], *ids)
    assert hidden.dtype == torch.bfloat16
    loss(plain, ids[1]).backward()
    loss(hidden @ head.to(hidden.dtype).T, ids[1]).backward()
    exact, theirs, mine = (torch.cat([p.grad.flatten() for p in model.parameters()]) for model in models)
    assert 0 < (mine - exact).norm() <= 1.5 * (theirs - exact).norm() < 0.1 * exact.norm()


def test_dropout_acts_in_training_alone_and_follows_the_seed(ids):
    model = build(dropout=0.3)
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(hidden_states(model.train(), *ids)[0])
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    torch.testing.assert_close(
        (hidden_states(model.eval(), *ids)[0] @ model.lm_head.weight.T).view(B, T, -1),
        model(input_ids=ids[0], labels=ids[1]).logits,
        atol=1e-5,
        rtol=1e-5,
    )


def test_a_frozen_model_computes_what_it_computed_under_autocast(ids):
    model = build().eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        before, _ = hidden_states(model, *ids)
        after, _ = hidden_states(freeze(model, torch.bfloat16), *ids)
    assert torch.equal(before, after)
    assert model.encoder.block[0].layer[-1].DenseReluDense.wi.weight.dtype == torch.bfloat16
    assert model.encoder.block[0].layer[0].layer_norm.weight.dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_200_steps_of_training_are_those_of_plain_transformers():
    """The losses in the precision that this machine trains in, and those of transformers in float32.

    Batches and optimizer are equal. A processor without instructions for bfloat16 trains in float32.
    """
    torch.manual_seed(0)
    words = torch.randint(2, 50, (400, 1))
    inputs = (words + torch.arange(S) * 3) % 48 + 2  # the first token determines all others
    batches = [(inputs[k : k + 8], inputs[k : k + 8, :T].flip(1)) for k in range(0, 400, 8)]
    curves = []
    for ours in (True, False):
        model = build()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        losses = []
        for step in range(200):
            input_ids, labels = batches[step % len(batches)]
            if ours:
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=multiplies_bfloat16()):
                    value, _ = mixed_cross_entropy(
                        *hidden_states(model, input_ids, labels), labels.flatten(), None, hard_fraction=1.0
                    )
            else:
                value = loss(model(input_ids=input_ids, labels=labels).logits, labels)
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(value.item())
        curves.append(torch.tensor(losses))
    mine, plain = curves
    assert plain[0] > 3.5 and plain[-40:].mean() < 1.5
    torch.testing.assert_close(mine[:20], plain[:20], atol=0.05, rtol=0)
    assert abs(mine[-40:].mean() - plain[-40:].mean()) < 0.1 * plain[-40:].mean() + 0.02
