import numpy as np
import pytest
import torch

from distill.data.soft_labels import equal_shares, sparse_labels
from distill.loss import mixed_cross_entropy

N, D, V = 9, 6, 40


@pytest.fixture
def case():
    torch.manual_seed(0)
    return torch.randn(N, D), 2 * torch.randn(V, D)


def softmax(hidden, head, temperature=1.0):
    """The teacher's probabilities in plain NumPy."""
    logits = hidden.double().numpy() @ head.double().numpy().T / temperature
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def entropy(probs):
    return -(probs * np.log(np.where(probs > 0, probs, 1))).sum(-1)


def counts(token_ids):
    """The count of each token id among the draws of each target token, [N, V]."""
    return np.stack([np.bincount(row, minlength=V) for row in token_ids.numpy()])


def offsets(value=None):
    return torch.rand(N, dtype=torch.float64) if value is None else torch.full((N,), value, dtype=torch.float64)


@pytest.mark.parametrize("num_tokens", [1, 4, 10])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_mean_of_sampled_labels_is_the_teachers_distribution(case, num_tokens, temperature):
    """With a grid of offsets the draws form a grid of the unit interval, so the mean is exact to one cell."""
    grid = (np.arange(500) + 0.5) / 500
    means = np.zeros((N, V))
    for offset in grid:
        sampled = sparse_labels(*case, num_tokens=num_tokens, temperature=temperature, offsets=offsets(offset))
        means += counts(sampled.token_ids) / num_tokens / len(grid)
    np.testing.assert_allclose(means, softmax(*case, temperature), atol=1 / (500 * num_tokens) + 1e-6)


def test_every_token_is_drawn_as_often_as_it_should_be_to_the_next_integer(case):
    probs = softmax(*case)
    for num_tokens in (3, 16, 100):
        drawn = counts(sparse_labels(*case, num_tokens=num_tokens, offsets=offsets()).token_ids)
        assert (drawn.sum(-1) == num_tokens).all()
        assert (np.abs(drawn - num_tokens * probs) < 1 + 1e-4).all()
        assert (drawn[probs >= 1 / num_tokens + 1e-6] >= 1).all()


def test_the_loss_takes_sampled_labels_as_a_whole_distribution(case):
    """If the student agrees, even a tiny mass that rounding leaves for other tokens would change the gradient."""
    head = case[1]
    for num_tokens in (16, 41, 100):
        sampled = sparse_labels(*case, num_tokens=num_tokens, offsets=offsets())
        ours, plain = (5 * case[0].clone().requires_grad_() for _ in range(2))
        labels = torch.zeros(N, dtype=torch.int64)
        loss, _ = mixed_cross_entropy(ours, head, labels, sampled, hard_fraction=0.0, reduction="sum")
        target = torch.from_numpy(counts(sampled.token_ids) / num_tokens).float()
        expected = -(target * (plain @ head.T).log_softmax(-1)).sum()
        gradients = [torch.autograd.grad(value, at)[0] for value, at in ((loss, ours), (expected, plain))]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_equal_shares_lack_nothing_of_one():
    for num_tokens in range(1, 300):
        shares = equal_shares(torch.zeros(2, num_tokens, dtype=torch.int64))
        for total in (shares.sum(-1), shares.cumsum(-1)[:, -1]):
            assert (total >= 1).all() and (total < 1 + 1e-4).all()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_top_k_are_the_likeliest_tokens_and_the_rest_is_one_class(case, temperature):
    probs = softmax(*case, temperature)
    kept = sparse_labels(*case, num_tokens=5, temperature=temperature)
    expected = np.sort(probs)[:, ::-1][:, :5]
    np.testing.assert_array_equal(kept.token_ids, np.argsort(probs)[:, ::-1][:, :5])
    np.testing.assert_allclose(kept.probs, expected, rtol=2**-11 + 1e-5)
    rest = 1 - kept.probs.double().numpy().sum(-1, keepdims=True)
    classes = np.concatenate([kept.probs.double().numpy(), rest], axis=-1)
    np.testing.assert_allclose(kept.entropy, entropy(classes), rtol=1e-5)


def test_top_k_of_all_tokens_leaves_nothing(case):
    kept = sparse_labels(*case, num_tokens=V)
    np.testing.assert_allclose(kept.probs.sum(-1), 1, atol=1e-3)
    np.testing.assert_allclose(kept.entropy, entropy(softmax(*case)), atol=0.01)


def test_sampled_labels_keep_the_entropy_of_the_whole_distribution(case):
    for temperature in (1.0, 2.5):
        sampled = sparse_labels(*case, num_tokens=3, temperature=temperature, offsets=offsets())
        np.testing.assert_allclose(sampled.entropy, entropy(softmax(*case, temperature)), rtol=1e-5)


@pytest.mark.parametrize("sampled", [False, True])
def test_chunks_do_not_matter(case, monkeypatch, sampled):
    drawn = offsets() if sampled else None
    whole = sparse_labels(*case, num_tokens=4, offsets=drawn)
    for tokens in (1, 2, 7):
        monkeypatch.setattr("distill.data.soft_labels._CHUNK", tokens * V)
        parts = sparse_labels(*case, num_tokens=4, offsets=drawn)
        assert torch.equal(parts.token_ids, whole.token_ids)
        torch.testing.assert_close(parts.probs, whole.probs), torch.testing.assert_close(parts.entropy, whole.entropy)


def test_the_ends_of_the_unit_interval_draw_no_impossible_token():
    head = torch.zeros(V, 1)
    head[[0, 1, V - 2, V - 1]] = -1e4  # their probability is 0 in every floating-point type
    for offset in (0.0, np.nextafter(1.0, 0.0)):
        drawn = sparse_labels(torch.ones(N, 1), head, num_tokens=V, offsets=offsets(offset))
        assert drawn.token_ids.min() >= 2 and drawn.token_ids.max() <= V - 3
