import numpy as np
import pytest
import torch

from distill.loss import mixed_cross_entropy, soft_label_entropy

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
    """The formula in plain NumPy, token by token."""
    logits = hidden.double().numpy() @ head.double().numpy().T
    teacher = np.exp(log_softmax(teacher_logits.double().numpy() / temperature))
    hard = soft = 0.0
    for token, label in enumerate(labels.tolist()):
        if label != -100:
            hard -= log_softmax(logits)[token, label]
            soft -= temperature**2 * (teacher[token] * log_softmax(logits / temperature)[token]).sum()
    return fraction * hard + (1 - fraction) * soft, hard, soft


@pytest.mark.parametrize("fraction", [0.0, 0.75, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("as_hidden", [False, True])
def test_equals_the_formula(case, fraction, temperature, as_hidden):
    hidden, head, labels, teacher_hidden, teacher_head = case
    teacher_logits = teacher_hidden @ teacher_head.T
    soft_labels = (teacher_hidden, teacher_head) if as_hidden else teacher_logits
    expected = reference(hidden, head, labels, teacher_logits, fraction, temperature)
    arguments = {"hard_fraction": fraction, "temperature": temperature}
    loss, (hard, soft) = mixed_cross_entropy(hidden, head, labels, soft_labels, reduction="sum", **arguments)
    np.testing.assert_allclose([loss, hard, soft], expected, rtol=1e-5)
    mean, parts = mixed_cross_entropy(hidden, head, labels, soft_labels, **arguments)
    np.testing.assert_allclose([mean, parts.hard, parts.soft], np.array(expected) / 5, rtol=1e-5)


def test_gradient_by_finite_differences(case):
    hidden, head, labels, teacher_hidden, teacher_head = (t.double() if t.is_floating_point() else t for t in case)

    def loss(hidden, head):
        # mixed_cross_entropy works in float32, so take its double counterpart from the reference formula.
        value, _ = mixed_cross_entropy(hidden, head, labels, (teacher_hidden, teacher_head), temperature=2.0)
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
                values.append(reference(*pair, labels, teacher_logits, 0.75, 2.0)[0] / 5)
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
        _, parts = mixed_cross_entropy(hidden, head, labels, (hidden, head), temperature=temperature, reduction="sum")
        entropy = soft_label_entropy((hidden, head), labels, temperature=temperature)
        torch.testing.assert_close(parts.soft, entropy)
        other = torch.randn(N, D)
        _, parts = mixed_cross_entropy(other, head, labels, (hidden, head), temperature=temperature, reduction="sum")
        assert parts.soft > entropy


def test_hard_labels_alone_need_no_teacher_and_equal_cross_entropy(case):
    hidden, head, labels, _, _ = case
    loss, parts = mixed_cross_entropy(hidden, head, labels, None, hard_fraction=1.0)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(hidden @ head.T, labels))
    assert parts.soft == 0


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
        ({"soft_labels": torch.zeros(N, V + 1)}, "7 tokens and 12 words"),
    ],
)
def test_wrong_arguments_are_named(case, change, message):
    hidden, head, labels, teacher_hidden, teacher_head = case
    soft_labels = change.pop("soft_labels", (teacher_hidden, teacher_head))
    with pytest.raises(ValueError, match=message):
        mixed_cross_entropy(hidden, head, labels, soft_labels, **change)
