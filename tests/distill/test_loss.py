import numpy as np
import pytest
import torch
import torch.nn.functional as F

from distill.loss import mixed_cross_entropy, sum_of_losses
from distill.loss_gradient import SparseSoftLabels

N, D, V = 7, 5, 11


@pytest.fixture
def case():
    torch.manual_seed(0)
    hidden = torch.randn(N, D, dtype=torch.float32)
    head = torch.randn(V, D)
    teacher_hidden, teacher_head = torch.randn(N, D + 2), torch.randn(V, D + 2)
    labels = torch.randint(0, V, (N,))
    labels[[1, 4]] = -100
    return hidden, head, labels, teacher_hidden, teacher_head


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def reference(hidden, head, labels, teacher_logits, fraction, temperature):
    """The formula in plain NumPy, token by token; ``fraction`` None is the weight by token."""
    logits = hidden.double().numpy() @ head.double().numpy().T
    teacher = np.exp(log_softmax(teacher_logits.double().numpy() / temperature))
    loss = hard = soft = 0.0
    for token, label in enumerate(labels.tolist()):
        if label != -100:
            of_hard = -log_softmax(logits)[token, label]
            of_soft = -(temperature**2) * (teacher[token] * log_softmax(logits / temperature)[token]).sum()
            weight = 1 - teacher[token, label] if fraction is None else fraction
            loss += weight * of_hard + (1 - weight) * of_soft
            hard, soft = hard + of_hard, soft + of_soft
    return loss, hard, soft


def arguments_of(fraction):
    return {"by_token": True} if fraction is None else {"hard_fraction": fraction}


@pytest.mark.parametrize("fraction", [0.0, 0.75, 1.0, None])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("as_hidden", [False, True])
def test_equals_the_formula(case, fraction, temperature, as_hidden):
    hidden, head, labels, teacher_hidden, teacher_head = case
    teacher_logits = teacher_hidden @ teacher_head.T
    soft_labels = (teacher_hidden, teacher_head) if as_hidden else teacher_logits
    expected = reference(hidden, head, labels, teacher_logits, fraction, temperature)
    arguments = {**arguments_of(fraction), "temperature": temperature}
    loss, (hard, soft) = mixed_cross_entropy(hidden, head, labels, soft_labels, reduction="sum", **arguments)
    np.testing.assert_allclose([loss, hard, soft], expected, rtol=1e-5)
    mean, parts = mixed_cross_entropy(hidden, head, labels, soft_labels, **arguments)
    np.testing.assert_allclose([mean, parts.hard, parts.soft], np.array(expected) / 5, rtol=1e-5)


@pytest.mark.parametrize("fraction", [0.75, None])
def test_gradient_by_finite_differences(case, fraction):
    hidden, head, labels, teacher_hidden, teacher_head = (t.double() if t.is_floating_point() else t for t in case)

    def loss(hidden, head):
        # mixed_cross_entropy computes in float32, so the finite differences use the float64 reference formula.
        value, _ = mixed_cross_entropy(
            hidden, head, labels, (teacher_hidden, teacher_head), temperature=2.0, **arguments_of(fraction)
        )
        return value

    hidden.requires_grad_(), head.requires_grad_()
    loss(hidden, head).backward()
    teacher_logits = teacher_hidden @ teacher_head.T
    for tensor in (hidden, head):
        for index in [(0, 0), (2, 3), (6, 4)]:
            values = []
            for sign in (1, -1):
                moved = tensor.detach().clone()
                moved[index] += sign * 1e-6
                pair = (moved, head.detach()) if tensor is hidden else (hidden.detach(), moved)
                values.append(reference(*pair, labels, teacher_logits, fraction, 2.0)[0] / 5)
            numeric = (values[0] - values[1]) / 2e-6
            assert tensor.grad[index].item() == pytest.approx(numeric, rel=1e-4, abs=1e-6)


def test_ignored_tokens_change_nothing(case):
    hidden, head, labels, teacher_hidden, teacher_head = case
    loss, parts = mixed_cross_entropy(hidden, head, labels, (teacher_hidden, teacher_head))
    more = [torch.cat([tensor, torch.randn_like(tensor)]) for tensor in (hidden, teacher_hidden)]
    longer = torch.cat([labels, torch.full_like(labels, -100)])
    padded, padded_parts = mixed_cross_entropy(more[0], head, longer, (more[1], teacher_head))
    torch.testing.assert_close(padded, loss)
    torch.testing.assert_close(torch.stack(padded_parts), torch.stack(parts))


def test_kl_is_zero_for_a_student_that_equals_its_teacher(case):
    hidden, head, labels, _, _ = case
    for temperature in (1.0, 3.0):
        same = sum_of_losses(hidden, head, labels, (hidden, head), hard_fraction=0.75, temperature=temperature)
        torch.testing.assert_close(same.soft, same.entropy)
        other = torch.randn(N, D)
        moved = sum_of_losses(other, head, labels, (hidden, head), hard_fraction=0.75, temperature=temperature)
        torch.testing.assert_close(moved.entropy, same.entropy)
        assert moved.soft > moved.entropy


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("chunk,tile", [(2**25, 2**19), (40, 30)])
def test_hard_labels_alone_need_no_teacher_and_equal_torchs_own(monkeypatch, case, reduction, chunk, tile):
    """Value and gradients equal those of ``F.linear_cross_entropy``, also with several chunks."""
    monkeypatch.setattr("distill.loss._CHUNK", chunk)
    monkeypatch.setattr("distill.loss._CPU_TILE", tile)
    hidden, head, labels, _, _ = case
    ours, theirs = ([tensor.clone().requires_grad_() for tensor in (hidden, head)] for _ in range(2))
    loss, parts = mixed_cross_entropy(*ours, labels, None, hard_fraction=1.0, reduction=reduction)
    chunked = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=3)
    expected = F.linear_cross_entropy(*theirs, labels, reduction=reduction, options=chunked)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    assert parts.hard == loss and parts.soft == 0
    loss.backward(), expected.backward()
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-5, atol=1e-6)


def test_soft_labels_alone_equal_torchs_own_with_probabilities(case):
    hidden, head, labels, teacher_hidden, teacher_head = case
    ours, theirs = ([tensor.clone().requires_grad_() for tensor in (hidden, head)] for _ in range(2))
    loss, _ = mixed_cross_entropy(*ours, labels, (teacher_hidden, teacher_head), hard_fraction=0.0, reduction="sum")
    counted = labels != -100  # linear_cross_entropy accepts only hard labels
    probs = (teacher_hidden @ teacher_head.T).softmax(-1)
    expected = F.linear_cross_entropy(theirs[0][counted], theirs[1], probs[counted], reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    loss.backward(), expected.backward()
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-5, atol=1e-6)


def test_no_counted_token_gives_zero_and_a_gradient_of_zero(case):
    hidden, head, labels, _, _ = case
    hidden.requires_grad_()
    loss, _ = mixed_cross_entropy(hidden, head, torch.full_like(labels, -100), (hidden.detach(), head))
    loss.backward()
    assert loss == 0 and not hidden.grad.any()


def test_the_teacher_gets_no_gradient(case):
    hidden, head, labels, teacher_hidden, teacher_head = case
    head.requires_grad_(), teacher_hidden.requires_grad_(), teacher_head.requires_grad_()
    mixed_cross_entropy(hidden, head, labels, (teacher_hidden, teacher_head))[0].backward()
    assert head.grad.any() and teacher_hidden.grad is None and teacher_head.grad is None


@pytest.mark.parametrize(
    "change,message",
    [
        ({"hard_fraction": 1.5}, "hard_fraction is 1.5"),
        ({"temperature": 0}, "temperature is 0"),
        ({"reduction": "none"}, "reduction is 'none'"),
        ({"soft_labels": None}, "soft_labels are needed"),
        ({"soft_labels": torch.zeros(N, V + 1)}, "7 tokens and a vocabulary of 12"),
    ],
)
def test_wrong_arguments_are_named(case, change, message):
    hidden, head, labels, teacher_hidden, teacher_head = case
    soft_labels = change.pop("soft_labels", (teacher_hidden, teacher_head))
    with pytest.raises(ValueError, match=message):
        mixed_cross_entropy(hidden, head, labels, soft_labels, **change)


def unfused(hidden, head, labels, teacher_logits, fraction, temperature):
    """The formula in plain float32 operations, differentiated by autograd."""
    logits = hidden.float() @ head.float().T
    counted = labels != -100
    hard = F.cross_entropy(logits[counted], labels[counted], reduction="sum")
    teacher = (teacher_logits.float() / temperature).softmax(-1)
    soft = -(teacher * (logits / temperature).log_softmax(-1)).sum(-1)[counted].sum() * temperature**2
    return fraction * hard + (1 - fraction) * soft


@pytest.mark.parametrize("dtype,tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("chunk,tile", [(2**25, 2**19), (1000, 128)])
def test_gradients_equal_the_unfused_ones_in_any_chunks(monkeypatch, dtype, tolerance, temperature, chunk, tile):
    monkeypatch.setattr("distill.loss._CHUNK", chunk)
    monkeypatch.setattr("distill.loss._CPU_TILE", tile)
    torch.manual_seed(0)
    tokens, size = 100, 64  # the last 14 ids are padding of the vocabulary and never labels
    hidden, teacher_hidden = torch.randn(tokens, 16).to(dtype), torch.randn(tokens, 24).to(dtype)
    head, teacher_head = torch.randn(size, 16), torch.randn(size, 24).to(dtype)
    labels = torch.randint(0, size - 14, (tokens,))
    labels[::7] = -100
    plain = [tensor.clone().float().requires_grad_() for tensor in (hidden, head.to(dtype))]
    ours = [tensor.clone().requires_grad_() for tensor in (hidden, head)]
    expected = unfused(*plain, labels, teacher_hidden.float() @ teacher_head.float().T, 0.75, temperature)
    (3 * expected).backward()
    loss, _ = mixed_cross_entropy(
        *ours, labels, (teacher_hidden, teacher_head), temperature=temperature, reduction="sum"
    )
    (3 * loss).backward()
    torch.testing.assert_close(loss, expected, rtol=tolerance / 10, atol=0)
    for mine, reference in zip(ours, plain, strict=True):
        error = (mine.grad.float() - reference.grad).norm() / reference.grad.norm()
        assert error < tolerance
    assert ours[1].grad.dtype == torch.float32 and ours[0].grad.dtype == dtype


def test_a_tied_head_gets_both_gradients(case):
    _, head, labels, teacher_hidden, teacher_head = case
    token_ids = torch.tensor([1, 5, 9, 0, 3, 2, 2])
    logits = teacher_hidden @ teacher_head.T
    ours, plain = (head.clone().requires_grad_() for _ in range(2))
    mixed_cross_entropy(ours[token_ids], ours, labels, logits, reduction="sum")[0].backward()
    unfused(plain[token_ids], plain, labels, logits, 0.75, 1.0).backward()
    torch.testing.assert_close(ours.grad, plain.grad)


@pytest.mark.parametrize("fraction", [0.75, None])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_sparse_labels_of_the_whole_vocabulary_are_the_dense_ones(case, temperature, fraction):
    hidden, head, labels, teacher_hidden, teacher_head = case
    logits = teacher_hidden @ teacher_head.T
    probs = (logits / temperature).softmax(-1)
    sparse = SparseSoftLabels(torch.arange(V).expand(N, V), probs, -(probs * probs.log()).sum(-1))
    results = []
    for soft_labels in (logits, sparse):
        student = hidden.clone().requires_grad_()
        weights = {"hard_fraction": 0.75, **arguments_of(fraction)}
        sums = sum_of_losses(student, head, labels, soft_labels, **weights, temperature=temperature)
        sums.loss.backward()
        results.append((*(part.detach() for part in sums), student.grad))
    for dense, same in zip(*results, strict=True):
        torch.testing.assert_close(same, dense)


def test_the_mass_of_other_tokens_is_one_class_more(case):
    """Compared with a cross-entropy over K + 1 classes, differentiated by autograd."""
    hidden, head, labels, teacher_hidden, teacher_head = case
    probs, token_ids = (teacher_hidden @ teacher_head.T).softmax(-1).topk(3)
    sparse = SparseSoftLabels(token_ids, probs, torch.zeros(N))
    ours, plain = (hidden.clone().requires_grad_() for _ in range(2))
    loss, _ = mixed_cross_entropy(ours, head, labels, sparse, hard_fraction=0.0, reduction="sum")
    q = (plain @ head.T).softmax(-1)
    others = q.masked_fill(torch.zeros(N, V, dtype=torch.bool).scatter_(1, token_ids, True), 0).sum(-1)
    cross = -(probs * q.gather(1, token_ids).log()).sum(-1) - (1 - probs.sum(-1)) * others.log()
    expected = cross[labels != -100].sum()
    torch.testing.assert_close(loss, expected)
    loss.backward(), expected.backward()
    torch.testing.assert_close(ours.grad, plain.grad)


@pytest.mark.parametrize("fraction", [0.75, None])
def test_repeated_token_ids_add_up(case, fraction):
    hidden, head, labels, _, _ = case
    labels[0] = 4
    twice = SparseSoftLabels(torch.tensor([[4, 4, 7, 9]]).expand(N, 4), torch.full((N, 4), 0.25), torch.zeros(N))
    once = SparseSoftLabels(
        torch.tensor([[4, 7, 9]]).expand(N, 3), torch.tensor([[0.5, 0.25, 0.25]]).expand(N, 3), torch.zeros(N)
    )
    gradients = []
    for sparse in (twice, once):
        student = hidden.clone().requires_grad_()
        mixed_cross_entropy(student, head, labels, sparse, **arguments_of(fraction))[0].backward()
        gradients.append(student.grad)
    torch.testing.assert_close(*gradients)
