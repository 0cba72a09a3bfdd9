"""What the benchmarks count and how they compare; the figures themselves are no test."""

import time

import pytest
from accelerate.state import AcceleratorState
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.arms import Arm, Timing, alternate, ratios
from benchmarks.models import SHAPES, WORDS, our_step, plain_step, step_operations, tokens
from distill.config import ModelConfig
from distill.models.build import build_dense


def test_operations_of_a_step_are_those_that_torch_counts():
    model = build_dense(ModelConfig(**SHAPES["demo"]), WORDS["demo"], pad=0, eos=1, seed=0)
    model.set_attn_implementation("eager")
    inputs, labels = tokens("demo", 16)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=inputs, labels=labels)
    # A teacher's forward pass and a student's, and twice that for the student's gradients.
    assert step_operations("demo", 16) == 4 * counter.get_total_flops()


@pytest.fixture
def own_precision():
    """A process has one precision for good: whatever other tests chose is forgotten, before and after."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("labels", ["hard", "online", "cached"])
def test_our_step_is_one_of_the_training_loop(own_precision, labels):
    step = our_step("demo", 2, labels)
    losses = [float(step()[0]["loss"]) for _ in range(8)]
    assert losses[-1] < losses[0]


def test_the_plain_step_learns_too(own_precision):
    step = plain_step("demo", 2, "no")
    losses = [step() for _ in range(8)]
    assert losses[-1] < losses[0]


def sleeper(seconds: float):
    return lambda: time.sleep(seconds)


def broken():
    raise ValueError("no such arm")


@pytest.mark.slow
def test_arms_take_turns_in_processes_of_their_own():
    arms = [Arm("slow", sleeper, {"seconds": 0.05}), Arm("fast", sleeper, {"seconds": 0.01}, repeats=2)]
    found = alternate(arms, rounds=3)
    assert found["slow"].median > 0.05 > found["fast"].median > 0.01
    assert len(found["fast"].seconds) == 3 and found["slow"].peak_bytes > 2**20
    with pytest.raises(RuntimeError, match="wrong: no such arm"):
        alternate([Arm("wrong", broken)], rounds=1)


def test_ratios_are_of_rates():
    slow, fast = Timing("slow", [4.0, 6.0, 5.0], 1.0, 0), Timing("fast", [2.0, 2.0, 2.0], 2.0, 0)
    assert ratios(slow, fast) == {"median": 5.0, "min": 4.0, "max": 6.0}
