"""FFNs that are built with one Switch layer in memory at a time, compared with those from a teacher in memory."""

import weakref

import pytest
import torch
import torch.nn.functional as F

from distill.config import ModelConfig
from distill.data.examples import Batch
from distill.models.build import new_t5
from distill.models.layerwise import States
from distill.models.t5_forward import hidden_states
from students.build_ffns import build_ffns
from students.calibration import ffn_errors, record
from students.ffn_init import METHODS, WITHOUT_CALIBRATION
from students.initialise import student_config
from teachers import save_teacher
from teachers.build import build_teacher, switch_layers
from teachers.config import SwitchConfig
from teachers.load import open_teacher, read_teacher
from teachers.streaming import StreamedExperts


@pytest.fixture(scope="module", params=["relu", "gated-gelu"])
def directory(request, tmp_path_factory):
    shape = ModelConfig(d_model=16, d_ff=24, d_kv=8, num_heads=2, num_layers=4, feed_forward=request.param)
    path = tmp_path_factory.mktemp("teacher")
    save_teacher(build_teacher(shape, SwitchConfig(), 64, 3, pad=0, eos=1, seed=0), path)
    return path


@pytest.fixture
def batches():
    torch.manual_seed(0)
    return [Batch(torch.randint(2, 64, (4, 12)), torch.randint(2, 64, (4, 6))) for _ in range(3)]


@pytest.fixture
def streamed(directory):
    """A teacher without experts, and what puts them in their place."""
    stored = open_teacher(str(directory))
    model = read_teacher(stored, SwitchConfig(), experts=False)
    return model, StreamedExperts(stored, model, compute_dtype=None)


def built(teacher, ffn_init, batches, **arguments):
    student = new_t5(student_config(teacher.config), seed=1)
    counts = build_ffns(teacher, student, ffn_init, 3, batches, **arguments)
    return student, counts


@pytest.mark.parametrize("ffn_init,text", [(name, True) for name in METHODS] + [("mean", False)])
def test_ffns_of_streamed_experts_are_the_same(directory, streamed, batches, tmp_path, monkeypatch, ffn_init, text):
    monkeypatch.setattr("students.ffn_init._STEPS", 20)
    assert text or ffn_init in WITHOUT_CALIBRATION
    batches = batches if text else None
    expected, counts = built(read_teacher(open_teacher(str(directory)), SwitchConfig()), ffn_init, batches)
    model, experts = streamed
    states = States(1000, tmp_path)  # most are in a file
    found, found_counts = built(model, ffn_init, batches, in_place=experts.in_place, states=states)
    matrices = 3 if model.config.is_gated_act else 2
    assert found_counts == counts == {"tensors": 4 * matrices, "parameters": 4 * matrices * 24 * 16, "added": 0}
    for (name, one), other in zip(found.state_dict().items(), expected.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    assert experts.bytes_read == 4 * matrices * 3 * 24 * 16 * 4  # each of the three experts once


def test_activations_are_those_of_a_forward_pass(directory, batches):
    teacher = read_teacher(open_teacher(str(directory)), SwitchConfig(capacity_factor_eval=1.0))
    seen = {name: [] for name, _ in switch_layers(teacher)}
    for name, block in switch_layers(teacher):
        block.mlp.register_forward_hook(lambda layer, args, output, name=name: seen[name].append((args[0], output[0])))
    for batch in batches:
        hidden_states(teacher, *batch)
    found = dict(record(teacher, batches))
    assert list(found) == list(seen)
    for name, parts in seen.items():
        inputs, outputs = (torch.cat([x.flatten(0, 1) for x in part]) for part in zip(*parts[:3], strict=True))
        assert torch.equal(found[name].inputs, inputs) and torch.equal(found[name].outputs, outputs)
        probs = F.linear(inputs, teacher.get_submodule(name).mlp.router.weight).softmax(-1)
        assert torch.equal(found[name].expert, probs.argmax(-1))


def test_only_one_layer_is_in_memory_at_a_time(streamed, batches):
    model, experts = streamed
    former = None
    for name, activations in record(model, batches, in_place=experts.in_place):
        assert former is None or former() is None
        former = weakref.ref(activations.inputs)
        in_memory = [other for other, block in switch_layers(model) if not block.mlp.wi.is_meta]
        assert in_memory == [name]
        del activations
    assert former() is None


def test_errors_of_streamed_experts_are_the_same(directory, streamed, batches):
    student = new_t5(student_config(streamed[0].config), seed=1)
    whole = read_teacher(open_teacher(str(directory)), SwitchConfig())
    found = ffn_errors(student, record(streamed[0], batches, in_place=streamed[1].in_place))
    assert found == ffn_errors(student, record(whole, batches)) and len(found) == 4


def test_a_pass_that_is_not_finished_restores_the_teacher(streamed, batches):
    model, experts = streamed
    model.train()
    passing = record(model, batches, in_place=experts.in_place)
    next(passing)
    passing.close()
    assert model.training and all(block.mlp.wi.is_meta for _, block in switch_layers(model))
    assert not any(block.mlp._forward_hooks for _, block in switch_layers(model))


def watched(freed: list[bool]):
    """``record``, and whether nothing holds the activations of a layer any more when those of the next are made."""

    def recorded(*args, **arguments):
        last = None
        for name, activations in record(*args, **arguments):
            if last is not None:
                freed.append(last() is None)
            last = weakref.ref(activations.inputs)
            yield name, activations
            del activations

    return recorded


def test_the_activations_of_a_layer_are_freed_before_the_next_one(directory, batches, monkeypatch):
    teacher, freed = read_teacher(open_teacher(str(directory)), SwitchConfig()), []
    monkeypatch.setattr("students.build_ffns.record", watched(freed))
    student, _ = built(teacher, "usage", batches)
    ffn_errors(student, watched(freed)(teacher, batches))
    assert freed == [True] * 6  # of four layers, in both passes


def test_parts_of_the_tokens_give_the_same_ffns_and_errors(directory, batches, monkeypatch):
    teacher, found = read_teacher(open_teacher(str(directory)), SwitchConfig()), []
    for tokens in (8192, 7):
        monkeypatch.setattr("students.calibration._TOKENS", tokens)
        student, _ = built(teacher, "select", batches)
        weights = torch.cat([weight.detach().flatten() for weight in student.parameters()])
        found.append({**ffn_errors(student, record(teacher, batches)), "norm": float(weights.norm())})
    assert found[1] == pytest.approx(found[0], rel=1e-4)
