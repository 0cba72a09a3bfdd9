"""The loss of matched states, compared with transformers' forward pass and finite differences."""

import numpy as np
import pytest
import torch
from torch import nn

from distill.models.build import build_dense
from distill.models.t5_forward import hidden_states
from distill.training.matching import Matching
from teachers.build import build_teacher, switch_layers
from teachers.config import SwitchConfig

VOCABULARY = 60
BOTH = ("hidden", "ffn")


@pytest.fixture
def shape(shape):
    return shape.model_copy(update={"num_layers": 4})


@pytest.fixture
def teacher(shape):
    """Two of the four FFNs in each stack are Switch layers; with a mixture, padding displaces no tokens."""
    model = build_teacher(shape, SwitchConfig(), VOCABULARY, 3, pad=0, eos=1, seed=1).eval().requires_grad_(False)
    for _, layer in switch_layers(model):
        layer.mlp.routing = "mixture"
    return model


@pytest.fixture
def student(shape):
    return build_dense(shape, VOCABULARY, pad=0, eos=1, seed=2)


@pytest.fixture
def ids():
    torch.manual_seed(0)
    labels = torch.randint(2, VOCABULARY, (3, 9))
    labels[0, -4:] = labels[2, -1:] = -100
    inputs = torch.randint(2, VOCABULARY, (3, 21))
    inputs[0, -9:] = inputs[1, -2:] = 0
    return inputs, labels


def match(kinds, student, teacher, ids):
    mine, theirs = [], []
    hidden_states(student, *ids, mine)
    hidden_states(teacher, *ids, theirs)
    return Matching(kinds, 1.0).loss(mine, theirs)


def states_of_transformers(model, ids) -> dict[str, dict[tuple[str, int], np.ndarray]]:
    """(stack, block) -> hidden states after the block, and output of its FFN, by hooks in transformers."""
    seen = {"hidden": {}, "ffn": {}}
    handles = []

    def keep(kind, key):
        def hook(module, args, output):
            seen[kind][key] = (output[0] if isinstance(output, tuple) else output).detach().double().numpy()

        return hook

    for stack in ("encoder", "decoder"):
        for number, block in enumerate(getattr(model, stack).block):
            last = block.layer[-1]
            ffn = last.mlp if hasattr(last, "mlp") else last.DenseReluDense
            handles.append(block.register_forward_hook(keep("hidden", (stack, number))))
            handles.append(ffn.register_forward_hook(keep("ffn", (stack, number))))
    output = model(input_ids=ids[0], attention_mask=(ids[0] != 0).long(), labels=ids[1], output_hidden_states=True)
    for handle in handles:
        handle.remove()
    if model.config.model_type == "t5":  # all but the last, which transformers returns normalised
        for stack, states in (("encoder", output.encoder_hidden_states), ("decoder", output.decoder_hidden_states)):
            for number, state in enumerate(states[1:-1]):
                seen["hidden"][stack, number] = state.detach().double().numpy()
    return seen


@pytest.mark.parametrize("kinds", [("hidden",), ("ffn",), BOTH])
def test_equals_the_formula_on_transformers_states(kinds, student, teacher, ids):
    mine, theirs = states_of_transformers(student, ids), states_of_transformers(teacher, ids)
    counted = {"encoder": (ids[0] != 0).numpy(), "decoder": (ids[1] != -100).numpy()}
    expected = 0.0
    for kind in kinds:
        errors = []
        for stack in ("encoder", "decoder"):
            for number in range(4) if kind == "hidden" else (1, 3):
                a, b = mine[kind][stack, number], theirs[kind][stack, number]
                rows = counted[stack]
                errors.append(((a[rows] - b[rows]) ** 2).mean() / (b[rows] ** 2).mean())
        assert len(errors) == (8 if kind == "hidden" else 4)
        expected += np.mean(errors)
    assert match(kinds, student, teacher, ids).item() == pytest.approx(expected, rel=1e-5)


def test_a_teacher_matches_itself_and_nothing_at_all_has_an_error_of_one(teacher, student, ids):
    assert match(BOTH, teacher, teacher, ids) == 0
    for block in (*student.encoder.block, *student.decoder.block):
        block.layer[-1].DenseReluDense.wo.weight.data.zero_()
    assert match(("ffn",), student, teacher, ids).item() == pytest.approx(1)


@pytest.mark.parametrize("kinds", [("hidden",), ("ffn",)])
def test_gradients_equal_finite_differences(kinds, student, teacher, ids):
    parameters = [p for p in student.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(match(kinds, student, teacher, ids), parameters, allow_unused=True)
    gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    values = []
    for sign in (1, -1):  # along the gradient, where the slope is its norm
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p += sign * 2e-3 * g / norm
            values.append(match(kinds, student, teacher, ids).item())
            for p, g in zip(parameters, gradients, strict=True):
                p -= sign * 2e-3 * g / norm
    assert (values[0] - values[1]) / 4e-3 == pytest.approx(norm.item(), rel=5e-3)


def test_padding_changes_nothing(student, teacher, ids):
    inputs, labels = ids
    longer = nn.functional.pad(inputs, (0, 4), value=0), nn.functional.pad(labels, (0, 5), value=-100)
    for kind in BOTH:
        padded = match((kind,), student, teacher, longer)
        torch.testing.assert_close(padded, match((kind,), student, teacher, ids), rtol=1e-5, atol=0)


def test_the_weight_falls_linearly_to_zero():
    falling = Matching(BOTH, 2.0, 8)
    assert [falling.weight_at(step) for step in (0, 2, 7, 8, 9, 10**9)] == [2.0, 1.5, 0.25, 0, 0, 0]
    assert [Matching(BOTH, 2.0).weight_at(step) for step in (0, 10**9)] == [2.0, 2.0]
