import numpy as np
import pytest
import torch

from teachers.experts import run_experts, sort_by_expert
from teachers.switch_layer import SwitchLayer

D, F = 8, 16


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def reference(layer: SwitchLayer, hidden: torch.Tensor, mask: torch.Tensor | None, factor: float):
    """Equations 1 to 6 of the paper, in a loop over tokens."""
    x = hidden.double().reshape(-1, D).numpy()
    real = np.ones(len(x), bool) if mask is None else mask.flatten().numpy().astype(bool)
    weights = {name: value.detach().double().numpy() for name, value in layer.named_parameters()}
    experts = layer.num_experts
    probs = softmax(x @ weights["router.weight"].T)
    capacity = max(4, int(real.sum() / experts * factor))
    output, taken, chosen = np.zeros_like(x), np.zeros(experts, int), np.zeros(experts, int)
    for token in np.flatnonzero(real):
        expert = probs[token].argmax()
        chosen[expert] += 1
        if taken[expert] == capacity:
            continue
        taken[expert] += 1
        if "wi_gate" in weights:
            gate = weights["wi_gate"][expert] @ x[token]
            gelu = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
            inner = gelu * (weights["wi"][expert] @ x[token])
        else:
            inner = np.maximum(weights["wi"][expert] @ x[token], 0)
        output[token] = probs[token, expert] * (weights["wo"][expert] @ inner)
    f, p = chosen / real.sum(), probs[real].mean(0)
    entropy = -(probs[real] * np.log(probs[real])).sum(-1).mean()
    return output.reshape(hidden.shape), experts * (f * p).sum(), f, 1 - taken.sum() / real.sum(), entropy


@pytest.mark.parametrize("experts", [2, 5, 16])
@pytest.mark.parametrize("activation", ["relu", "gated-gelu"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("small", [0, 2**24], ids=["sliced", "slotted"])
def test_equals_the_equations(monkeypatch, experts, activation, training, padded, small):
    monkeypatch.setattr("teachers.experts._SMALL", small)
    torch.manual_seed(experts)
    layer = SwitchLayer(D, F, experts, jitter=0.0, activation=activation, capacity_factor_train=0.7).train(training)
    layer.router.weight.data *= 5  # an unbalanced router, so that tokens are dropped
    hidden = torch.randn(3, 20, D)
    mask = (torch.rand(3, 20) < 0.7).long() if padded else None
    output, statistics = layer(hidden, mask)
    expected = reference(layer, hidden, mask, 0.7 if training else 2.0)
    np.testing.assert_allclose(output.detach(), expected[0], atol=1e-5)
    np.testing.assert_allclose(statistics.load_balancing_loss.detach(), expected[1], rtol=1e-5)
    np.testing.assert_allclose(statistics.load, expected[2], atol=1e-6)
    np.testing.assert_allclose(statistics.dropped_fraction, expected[3], atol=1e-6)
    np.testing.assert_allclose(statistics.entropy, expected[4], rtol=1e-5)
    if training:
        assert statistics.dropped_fraction > 0


@pytest.mark.parametrize("activation", ["relu", "gated-gelu"])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("empty", [0, 2**40], ids=["sliced", "slotted"])
def test_without_dropping_capacity_is_not_limited(monkeypatch, activation, padded, empty):
    monkeypatch.setattr("teachers.experts._SMALL_EMPTY", {torch.float32: empty})
    torch.manual_seed(0)
    layer = SwitchLayer(D, F, 5, activation=activation, capacity_factor_eval=0.5).eval()
    layer.router.weight.data *= 5
    hidden = torch.randn(3, 20, D)
    mask = (torch.rand(3, 20) < 0.7).long() if padded else None
    assert layer(hidden, mask)[1].dropped_fraction > 0.2
    layer.drops_tokens = False
    output, statistics = layer(hidden, mask)
    expected = reference(layer, hidden, mask, 100.0)
    np.testing.assert_allclose(output.detach(), expected[0], atol=1e-5)
    np.testing.assert_allclose(statistics.load, expected[2], atol=1e-6)
    assert statistics.dropped_fraction == 0 == expected[3]
    alone, _ = layer(hidden[1:2, :3])  # the output of a token does not depend on the others
    np.testing.assert_allclose(alone.detach(), reference(layer, hidden[1:2, :3], None, 100.0)[0], atol=1e-5)
    layer(hidden, torch.zeros(3, 20))  # no tokens at all


def test_the_first_tokens_of_an_expert_are_kept():
    layer = SwitchLayer(D, F, 2, capacity_factor_eval=0.5).eval()
    layer.router.weight.data = torch.stack([torch.ones(D), -torch.ones(D)])
    hidden = torch.rand(1, 32, D)  # all tokens choose expert 0
    output, statistics = layer(hidden)
    used = output.abs().sum(-1)[0] > 0
    assert used.tolist() == [True] * 8 + [False] * 24
    assert statistics.load.tolist() == [1.0, 0.0] and statistics.dropped_fraction == 0.75


def test_padding_changes_nothing_for_the_other_tokens():
    torch.manual_seed(0)
    layer = SwitchLayer(D, F, 4).eval()
    hidden = torch.randn(2, 10, D)
    output, statistics = layer(hidden)
    longer = torch.cat([hidden, torch.full((2, 6, D), 100.0)], 1)
    mask = torch.cat([torch.ones(2, 10), torch.zeros(2, 6)], 1)
    padded, padded_statistics = layer(longer, mask)
    torch.testing.assert_close(padded[:, :10], output)
    assert not padded[:, 10:].any()
    for one, other in zip(statistics, padded_statistics, strict=True):
        torch.testing.assert_close(one, other)


def test_capacity_is_that_of_the_paper():
    layer = SwitchLayer(D, F, 8, capacity_factor_train=1.25, capacity_factor_eval=2.0)
    assert layer.capacity(1000) == 156 and layer.eval().capacity(1000) == 250
    assert layer.capacity(3) == 4


@pytest.mark.parametrize("experts", [1, 3, 7, 128])
@pytest.mark.parametrize("factor", [1.25, 2.0, 0.7, 1.1])
def test_capacity_of_a_number_on_the_device_is_rounded_alike(experts, factor):
    layer = SwitchLayer(D, F, experts, capacity_factor_train=factor)
    tokens = [*range(1, 3000), 2**20 - 1]
    assert [int(layer.capacity(one)) for one in torch.tensor(tokens)] == [layer.capacity(one) for one in tokens]


def test_load_balancing_loss_is_one_when_uniform_and_has_the_gradient_of_the_mean_probability():
    layer = SwitchLayer(D, F, 4, jitter=0.0)
    layer.router.weight.data.zero_()
    assert layer(torch.randn(1, 8, D))[1].load_balancing_loss.item() == pytest.approx(1.0)
    torch.manual_seed(1)
    layer.reset_parameters()
    hidden = torch.randn(2, 50, D)
    layer(hidden)[1].load_balancing_loss.backward()
    weight = layer.router.weight.detach().double().numpy()
    x = hidden.double().numpy().reshape(-1, D)
    f = np.bincount(softmax(x @ weight.T).argmax(-1), minlength=4) / 100  # constant in equation 4
    for index in [(0, 0), (3, 5)]:
        values = []
        for sign in (1, -1):
            moved = weight.copy()
            moved[index] += sign * 1e-6
            values.append(4 * (f * softmax(x @ moved.T).mean(0)).sum())
        assert layer.router.weight.grad[index].item() == pytest.approx((values[0] - values[1]) / 2e-6, abs=1e-6)


def test_the_gate_keeps_the_router_differentiable():
    layer = SwitchLayer(D, F, 4)
    layer(torch.randn(1, 20, D))[0].pow(2).sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_initialisation_is_a_truncated_normal_of_scale_one_tenth():
    torch.manual_seed(0)
    layer = SwitchLayer(64, 128, 16)
    for weight, fan_in in ((layer.router.weight, 64), (layer.wi, 64), (layer.wo, 128)):
        std = (0.1 / fan_in) ** 0.5
        assert weight.std().item() == pytest.approx(std, rel=0.05)
        assert weight.abs().max() <= 2 * std / 0.8796 * 1.001


def test_jitter_reaches_the_router_alone_and_in_training_alone():
    layer = SwitchLayer(D, F, 2, jitter=0.5, capacity_factor_train=4.0)
    hidden = torch.randn(1, 64, D)
    noisy, _ = layer(hidden)
    again, _ = layer(hidden)
    assert not torch.equal(noisy, again)
    layer.eval()
    assert torch.equal(layer(hidden)[0], layer(hidden)[0])
    # With equal experts, jitter changes an output only through the gate, which is a factor per token.
    layer.train()
    layer.wi.data[1], layer.wo.data[1] = layer.wi.data[0], layer.wo.data[0]
    ratio = layer(hidden)[0] / layer(hidden)[0]
    torch.testing.assert_close(ratio, ratio[..., :1].expand_as(ratio), rtol=1e-3, atol=1e-3)


def test_the_router_is_float32_under_bfloat16():
    torch.manual_seed(0)
    layer = SwitchLayer(D, F, 8).eval()
    hidden = torch.randn(1, 200, D)
    exact = layer(hidden)[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, mixed = layer(hidden)
    assert output.dtype == hidden.dtype
    torch.testing.assert_close(mixed.load, exact.load)
    torch.testing.assert_close(mixed.load_balancing_loss, exact.load_balancing_loss)


def test_expert_dropout_is_active_in_training_alone():
    torch.manual_seed(0)
    layer = SwitchLayer(D, F, 2, jitter=0.0, expert_dropout=0.4)
    hidden = torch.randn(1, 10, D)
    assert not torch.equal(layer(hidden)[0], layer(hidden)[0])
    layer.eval()
    assert torch.equal(layer(hidden)[0], layer(hidden)[0])


def test_the_output_is_bit_for_bit_that_of_the_experts_times_the_gate():
    torch.manual_seed(0)
    layer = SwitchLayer(D, F, 5, capacity_factor_eval=0.7).eval()
    hidden = torch.randn(3, 20, D)
    tokens = hidden.flatten(0, 1)
    gate, expert = torch.nn.functional.linear(tokens, layer.router.weight).softmax(-1).max(-1)
    routing = sort_by_expert(expert, 5)
    expected = run_experts(tokens, routing, layer.capacity(60), torch.relu, layer.wi, None, layer.wo) * gate[:, None]
    expected = expected.where((routing.position < layer.capacity(60))[:, None], 0)
    assert torch.equal(layer(hidden)[0].flatten(0, 1), expected)
