"""Tests of the benchmarks' operation counts, steps and timing. Measured speeds are not tested."""

import time

import pytest
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.models import SHAPES, VOCABULARY_SIZE, our_step, plain_step, step_operations, tokens
from benchmarks.padding import batches, counted, padded_step
from benchmarks.timing import Candidate, Timing, alternate, ratios
from distill.config import ModelConfig
from distill.models.build import build_dense


def test_operations_of_a_step_are_those_that_torch_counts():
    model = build_dense(ModelConfig(**SHAPES["small"]), VOCABULARY_SIZE["small"], pad=0, eos=1, seed=0)
    model.set_attn_implementation("eager")
    inputs, labels = tokens("small", 16)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=inputs, labels=labels)
    # The forward passes of teacher and student, and twice a forward pass for the student's backward pass.
    assert step_operations("small", 16) == 4 * counter.get_total_flops()


@pytest.mark.parametrize("labels", ["hard", "online", "cached"])
def test_our_step_reduces_the_loss(labels):
    step = our_step("small", 2, labels)
    losses = [float(step()[0]["loss"]) for _ in range(8)]
    assert losses[-1] < losses[0]


def test_the_plain_step_reduces_the_loss():
    step = plain_step("small", 2, "no")
    losses = [step() for _ in range(8)]
    assert losses[-1] < losses[0]


def test_padded_batches_have_the_shapes_of_full_ones_and_little_padding():
    full, padded = batches(False), batches(True)
    shapes = [(inputs.shape, labels.shape) for inputs, labels in full]
    assert shapes == [(inputs.shape, labels.shape) for inputs, labels in padded] and len(set(shapes)) == len(shapes)
    assert counted(full) == sum(inputs.numel() + labels.numel() for inputs, labels in full)
    assert 0.05 < 1 - counted(padded) / counted(full) < 0.1
    for inputs, labels in padded:  # padding is at the end, and no example is empty
        for is_token in (inputs != 0, labels != -100):
            assert is_token[:, 0].all() and (is_token.long().diff(dim=1) <= 0).all()


@pytest.mark.parametrize("kind", ["dense", "Switch"])
def test_the_padded_step_runs(monkeypatch, kind):
    monkeypatch.setattr("benchmarks.padding.BATCH", 4)
    padded_step(kind, True, "auto")()


def sleeper(seconds: float):
    return lambda: time.sleep(seconds)


def broken():
    raise ValueError("no such model")


@pytest.mark.slow
def test_candidates_are_timed_in_turns_in_their_own_processes():
    candidates = [
        Candidate("slow", sleeper, {"seconds": 0.05}),
        Candidate("fast", sleeper, {"seconds": 0.01}, repeats=2),
    ]
    found = alternate(candidates, rounds=3)
    assert found["slow"].median > 0.05 > found["fast"].median > 0.01
    assert len(found["fast"].seconds) == 3 and found["slow"].peak_bytes > 2**20
    with pytest.raises(RuntimeError, match="wrong: no such model"):
        alternate([Candidate("wrong", broken)], rounds=1)


def test_ratios_are_of_rates():
    slow, fast = Timing("slow", [4.0, 6.0, 5.0], 1.0, 0), Timing("fast", [2.0, 2.0, 2.0], 2.0, 0)
    assert ratios(slow, fast) == {"median": 5.0, "min": 4.0, "max": 6.0}
