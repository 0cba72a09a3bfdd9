import numpy as np
import pytest
import torch

from distill.data.examples import Batch
from distill.models.build import new_t5
from students.calibration import ffn_errors, record
from students.initialise import student_config
from teachers.build import build_teacher, switch_layers
from teachers.config import TeacherConfig


@pytest.fixture
def teacher(shape):
    teacher = build_teacher(shape, TeacherConfig(experts=[3]), 64, 3, pad=0, eos=1, seed=0).eval()
    for _, block in switch_layers(teacher):
        block.mlp.router.weight.data *= 20  # an unbalanced router, so that tokens are dropped
        block.mlp.capacity_factor_eval = 1.1
    return teacher


@pytest.fixture
def batches():
    torch.manual_seed(0)
    return [Batch(torch.randint(2, 64, (4, 12)), torch.randint(2, 64, (4, 6))) for _ in range(2)]


def test_the_recorded_output_follows_from_input_expert_and_gate(teacher, batches):
    """Equation 2 of the paper in NumPy, for one token at a time."""
    recorded = dict(record(teacher, batches))
    dropped = 0
    for name, block in switch_layers(teacher):
        seen, layer = recorded[name], block.mlp
        assert len(seen.inputs) == 2 * 4 * (12 if name.startswith("encoder") else 6)
        wi, wo = layer.wi.detach().numpy(), layer.wo.detach().numpy()
        logits = seen.inputs.numpy() @ layer.router.weight.detach().numpy().T
        probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        for x, i, gate, y, p in zip(*(part.numpy() for part in seen), probs, strict=True):
            assert i == p.argmax() and gate == pytest.approx(0 if gate == 0 else p[i], rel=1e-5)
            np.testing.assert_allclose(y, gate * (wo[i] @ np.maximum(wi[i] @ x, 0)), atol=1e-5)
        dropped += float((seen.gate == 0).float().mean())
    assert dropped > 0


def test_recorded_dropped_tokens_match_the_layers_statistics(teacher, batches):
    name, block = switch_layers(teacher)[0]
    seen = dict(record(teacher, batches[:1]))[name]
    assert block.statistics.dropped_fraction > 0
    assert (seen.gate == 0).float().mean() == block.statistics.dropped_fraction
    assert torch.equal(torch.bincount(seen.expert, minlength=3) / len(seen.expert), block.statistics.load)


def test_padding_is_not_recorded(teacher, batches):
    """The activations of a padded batch are those of its examples alone, one after the other."""
    for _, block in switch_layers(teacher):
        block.mlp.capacity_factor_eval = 3.0  # no token is dropped
    inputs, labels = batches[0]
    lengths = [(12, 3), (5, 6), (1, 1), (7, 2)]
    for row, (inputs_length, targets) in enumerate(lengths):
        inputs[row, inputs_length:], labels[row, targets:] = 0, -100
    alone = [Batch(inputs[k : k + 1, :s], labels[k : k + 1, :t]) for k, (s, t) in enumerate(lengths)]
    together, expected = dict(record(teacher, batches[:1])), dict(record(teacher, alone))
    assert [len(seen.inputs) for seen in together.values()] == [12 + 5 + 1 + 7, 3 + 6 + 1 + 2]
    for name, seen in together.items():
        for found, one in zip(seen, expected[name], strict=True):
            torch.testing.assert_close(found, one, rtol=1e-4, atol=1e-5)


def test_recording_does_not_change_the_teacher(teacher, batches):
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    teacher.train()
    list(record(teacher, batches))
    assert teacher.training and all(torch.equal(before[name], t) for name, t in teacher.state_dict().items())
    assert not any(block.mlp._forward_hooks for _, block in switch_layers(teacher))


def test_recording_needs_a_batch(teacher):
    with pytest.raises(ValueError, match="at least one batch"):
        list(record(teacher, []))


def test_errors_are_relative_and_squared(teacher, batches):
    recorded = dict(record(teacher, batches))
    student = new_t5(student_config(teacher.config), seed=3)
    errors = ffn_errors(student, recorded.items())
    assert list(errors) == ["encoder.1", "decoder.1"]
    for (name, seen), error in zip(recorded.items(), errors.values(), strict=True):
        ffn = student.get_submodule(name).DenseReluDense
        y = np.maximum(seen.inputs.numpy() @ ffn.wi.weight.detach().numpy().T, 0) @ ffn.wo.weight.detach().numpy().T
        expected = ((y - seen.outputs.numpy()) ** 2).sum() / (seen.outputs.numpy() ** 2).sum()
        assert error == pytest.approx(expected, rel=1e-4)
        ffn.wo.weight.data.zero_()
    assert list(ffn_errors(student, recorded.items()).values()) == pytest.approx([1.0, 1.0])
