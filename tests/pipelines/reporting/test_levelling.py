"""The rule that says whether the dense baseline has levelled off."""

import math

import pytest

from pipelines.reporting.levelling import levelling, levelling_sentence


def report(short: float, long: float, *, steps: tuple[int, int] = (1000, 1250), gains: tuple[float, ...] = (0.2,)):
    rows = [{"experts": 4 * 2**place, "gain_long": gain} for place, gain in enumerate(gains)]
    return {
        "baseline": {"quality": short, "steps": steps[0]},
        "long_baseline": {"quality": long, "steps": steps[1]},
        "ratios": list(reversed(rows)),
    }


def test_a_quarter_more_steps_are_compared_with_a_tenth_of_the_gain():
    assert levelling(report(-1.0, -0.981)) == pytest.approx(
        {"change": 0.019, "smallest_gain": 0.2, "levelled_off": True}
    )
    assert not levelling(report(-1.0, -0.979))["levelled_off"]
    assert not levelling(report(-1.0, -1.03))["levelled_off"], "more training makes it worse"


def test_other_lengths_are_converted_to_a_quarter_more_steps():
    curve = {steps: -1.5 + 0.05 * math.log(steps) for steps in (1000, 1250, 3000)}
    change = levelling(report(curve[1000], curve[3000], steps=(1000, 3000)))["change"]
    assert change == pytest.approx(curve[1250] - curve[1000])


@pytest.mark.parametrize("gains", [(0.3, 0.05), (0.05, 0.3)])
def test_the_smallest_gain_counts_whichever_teacher_has_it(gains):
    assert levelling(report(-1.0, -0.99, gains=gains))["smallest_gain"] == 0.05
    assert not levelling(report(-1.0, -0.99, gains=gains))["levelled_off"]


def test_without_a_gain_nothing_has_levelled_off():
    assert not levelling(report(-1.0, -1.0, gains=(-0.01,)))["levelled_off"], "a teacher without a gain"


@pytest.mark.parametrize(
    ("long", "gain", "expected"),
    [
        (-0.99, 0.2, "has levelled off: 25% more steps change its quality by +0.0100 nats, less than a tenth"),
        (-0.90, 0.2, "is still learning: 25% more steps change its quality by +0.1000 nats"),
        (-1.10, 0.2, "More training makes the baseline worse"),
        (
            -0.99,
            -0.1,
            "25% more steps change the baseline's quality by +0.0100 nats; a teacher has no gain over",
        ),
    ],
)
def test_the_result_is_a_sentence(long, gain, expected):
    values = report(-1.0, long, gains=(gain,))
    assert expected in levelling_sentence(values | {"levelling": levelling(values)})


def test_equal_lengths_say_nothing():
    values = report(-1.0, -1.0, steps=(1000, 1000))
    assert levelling(values)["levelled_off"] is None
    assert levelling_sentence(values | {"levelling": levelling(values)}) == ""
