"""The sentences of a report on gains without a fraction and on models that are worse than a baseline."""

import pytest

from pipelines.reporting.verdict import verdicts, why_no_interval, why_none, why_undefined


def row(ratio="e4", gain=0.1, interval=(0.05, 0.15), student=-1.0, kept=None, variant=None) -> dict:
    """A row of report.json. Figures against the long baseline are the same, but have a fraction."""
    known = {"ratio": ratio, "variant": variant, "student_quality": student}
    known |= {"gain": gain, "gain_interval": list(interval), "fraction_kept": kept}
    return known | {"gain_long": gain, "gain_long_interval": list(interval), "fraction_kept_long": 0.5}


def said(*rows: dict, baseline: float = -2.0, long: float = -2.0) -> str:
    return verdicts({"ratios": list(rows), "baseline": {"quality": baseline}, "long_baseline": {"quality": long}})


@pytest.mark.parametrize(
    "value,interval,sentence",
    [
        (
            -0.230,
            (-0.348, -0.108),
            "the teacher is worse than the baseline: its gain is -0.2300 nats per target token, and its whole 95 % "
            "interval [-0.3480, -0.1080] is below 0",
        ),
        (
            0.0123,
            (-0.004, 0.03),
            "the teacher's gain over the baseline is 0.0123 nats per target token, and its 95 % interval "
            "[-0.0040, 0.0300] reaches 0",
        ),
        (
            -0.0123,
            (-0.03, 0.004),
            "the teacher's gain over the baseline is -0.0123 nats per target token, and its 95 % interval "
            "[-0.0300, 0.0040] reaches 0",
        ),
        (
            0.01,
            (0.001, 0.03),
            "the teacher's gain over the baseline is 0.0100 nats per target token, and its 95 % interval "
            "[0.0010, 0.0300] is too close to 0",
        ),
        (
            -1.0,
            (-1.0, -1.0),
            "the teacher is worse than the baseline: its gain is -1.0000 nats per target token, and its whole 95 % "
            "interval [-1.0000, -1.0000] is below 0",
        ),
        (0.0, (0.0, 0.0), "the teacher's gain over the baseline is 0 in every document"),
    ],
)
def test_reason_for_an_undefined_fraction(value, interval, sentence):
    assert why_undefined(value, interval, "baseline") == sentence
    assert why_undefined(value, interval, "long baseline") == sentence.replace("the baseline", "the long baseline")


def test_the_reason_names_the_unit_of_a_metric():
    sentence = (
        "the teacher's gain over the baseline is 0.5000 in chrf, and its 95 % interval [-0.5000, 1.5000] reaches 0"
    )
    assert why_undefined(0.5, (-0.5, 1.5), "baseline", "in chrf") == sentence


def test_a_gain_with_its_whole_interval_below_0_is_negative():
    text = said(row(gain=-0.230, interval=(-0.348, -0.108)))
    assert text == " Worse than the baseline and excluded from means: the teacher of e4 (gain -0.230 [-0.348, -0.108])."


@pytest.mark.parametrize("gain", [0.01, -0.01])
def test_a_gain_whose_interval_reaches_0_is_undefined_on_either_side(gain):
    reaching = row(gain=gain, interval=(-0.1, 0.1))
    assert said(reaching) == (
        " Undefined and excluded from means: e4 (the gain over the baseline has an interval that reaches 0)."
    )
    assert why_none([reaching], "") == "undefined"


def test_other_reasons_have_their_own_sentences():
    assert said(row(interval=(0.001, 0.15), variant="mine"), row(kept=0.5, variant="paper")) == (
        " Undefined and excluded from means: e4 mine (the gain over the baseline is too close to 0)."
    )


@pytest.mark.parametrize("gain", [-0.1, 0.1])
def test_one_document_and_one_seed_make_no_gain_negative(gain):
    alone = row(gain=gain, interval=(gain, gain), variant="mine") | {"fraction_undefined": why_no_interval("baseline")}
    assert said(alone) == (
        " Undefined and excluded from means: e4 (one document and one seed give no interval of the gain over the "
        "baseline)."
    )
    assert why_none([alone], "") == "undefined"


@pytest.mark.parametrize(
    "value,sentence,word",
    [
        (-1.0, " Worse than the baseline and excluded from means: the teacher of e4 (gain", "negative"),
        (0.0, " Undefined and excluded from means: e4 (the gain over the baseline has an interval that", "undefined"),
    ],
)
def test_a_gain_that_is_the_same_in_every_document_has_an_interval(value, sentence, word):
    same = row(gain=value, interval=(value, value))
    assert said(same).startswith(sentence) and why_none([same], "") == word


def test_each_teacher_is_named_once_under_its_own_reason():
    teachers = {"e4": {"gain": -0.2, "interval": (-0.3, -0.1)}, "e8": {"gain": 0.01, "interval": (-0.1, 0.1)}}
    rows = [row(name, variant=variant, **how) for name, how in teachers.items() for variant in ("a", "b")]
    assert said(*rows) == (
        " Worse than the baseline and excluded from means: the teacher of e4 (gain -0.200 [-0.300, -0.100])."
        " Undefined and excluded from means: e8 (the gain over the baseline has an interval that reaches 0)."
    )
    assert why_none(rows[:2], "") == "negative" and why_none(rows, "") == "undefined"
    assert why_none([{"fraction_kept": None}], "") == "undefined"  # a mean over ratios


def test_students_that_are_worse_than_a_baseline_are_named():
    kept = [row("e4", kept=-0.5, student=-2.125), row("e8", kept=0.5, student=-1.9)]
    assert said(*kept) == " Below the baseline: the student of e4 by 0.1250 nats." + (
        " Below the long baseline: the student of e4 by 0.1250 nats."
    )
    assert said(*kept, long=-1.5) == " Below the baseline: the student of e4 by 0.1250 nats." + (
        " Every student is below the long baseline, by 0.4000 to 0.6250 nats."
    )
    assert said(*kept, baseline=-3.0, long=-3.0) == ""
    assert said(row(kept=0.0, student=-2.0)) == ""  # equal to the baseline


def test_no_sentence_if_nothing_is_worse_or_undefined():
    assert said(row(kept=0.5), row("e8", kept=1.1)) == ""
