"""Answers of a teacher: stored in the order of the inputs, also by calls that are killed and repeated."""

import json

import numpy as np
import pytest

from distill.errors import UserError
from distill.generation import generate
from distill.models.build import build_dense
from distill.tasks import answers
from distill.tasks.answers import make_answers, read_answers, with_answers
from distill.training.loop import make_accelerator
from tests.damage import damage
from tests.distill.tasks.test_examples import make_pairs, texts_of

EOS, MAX_LENGTH = 1, 6


@pytest.fixture(scope="module")
def accelerator():
    return make_accelerator("float32")


def make_inputs(count=50):
    rng = np.random.default_rng(0)
    return [np.append(rng.integers(2, 60, length), EOS) for length in rng.integers(1, 20, count)]


def echo(teacher, inputs, *, max_length, **_):
    """A teacher whose answer is the input without eos."""
    return [one[:-1][:max_length].tolist() for one in inputs]


@pytest.fixture
def make(tmp_path, accelerator, monkeypatch):
    """Make answers in units of 16 with the function ``ask`` in place of ``generate``; returns the files' content."""
    monkeypatch.setattr(answers, "_UNIT", 16)

    def run(inputs, ask=echo, name="answers", teacher=None, origin="first", **settings):
        monkeypatch.setattr(answers, "generate", ask)
        options = {"max_length": MAX_LENGTH, "beams": 1, "eos": EOS, "batch_size": 8, **settings}
        place = {"accelerator": accelerator, "origin": {"teacher": origin}, "units": tmp_path / "units"}
        make_answers(teacher, inputs, tmp_path / name, **options, **place)
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    return run


def stored(directory):
    """The answers as lists."""
    tokens, ends = read_answers(directory)
    return [one.tolist() for one in np.split(tokens, ends[:-1])]


def test_answers_have_the_order_of_the_inputs_and_eos_if_they_ended(make, tmp_path):
    inputs = make_inputs()
    make(inputs)
    short = [one.tolist() if len(one) <= MAX_LENGTH else one[:MAX_LENGTH].tolist() for one in inputs]
    assert stored(tmp_path / "answers") == short
    assert {len(one) for one in short} >= {3, MAX_LENGTH} and any(one[-1] == EOS for one in short)
    assert any(one[-1] != EOS for one in short)
    record = json.loads((tmp_path / "answers" / "answers.json").read_text())
    assert (record["answers"], record["tokens"], record["teacher"]) == (50, sum(map(len, short)), "first")
    assert not (tmp_path / "units").exists()


@pytest.mark.parametrize("beams", [1, 2])
def test_a_models_answers_are_those_of_generate(make, tmp_path, shape, beams):
    model = build_dense(shape, 64, pad=0, eos=EOS, seed=0)
    for name, parameter in model.named_parameters():  # else all inputs have the same answer
        if parameter.ndim == 2 and name != "shared.weight":
            parameter.data *= 8
    inputs = make_inputs(20)
    make(inputs, ask=generate, teacher=model, beams=beams)
    found = [one[:-1] if one[-1] == EOS else one for one in stored(tmp_path / "answers")]
    assert found == generate(model, inputs, max_length=MAX_LENGTH, batch_size=7, beams=beams)
    assert len(set(map(str, found))) > 5


@pytest.mark.parametrize("killed_at", [1, 2, 4])
def test_a_killed_call_continues_after_its_last_unit(make, tmp_path, killed_at):
    inputs, asked = make_inputs(), []
    whole = make(inputs, name="whole")

    def die(teacher, chosen, **options):
        asked.append(len(chosen))
        if len(asked) == killed_at:
            raise KeyboardInterrupt
        return echo(teacher, chosen, **options)

    with pytest.raises(KeyboardInterrupt):
        make(inputs, ask=die)
    assert not (tmp_path / "answers").exists()
    (tmp_path / "units" / f"{killed_at:08d}.tmp.npz").write_bytes(b"half a unit")
    asked.clear()
    assert (
        make(inputs, ask=lambda *given, **options: (asked.append(len(given[1])), echo(*given, **options))[1]) == whole
    )
    assert asked == [16, 16, 16, 2][killed_at - 1 :]


def test_a_stage_that_is_killed_after_it_has_stored_the_answers_does_not_make_them_again(make):
    def never(*_, **__):
        raise AssertionError("the answers are there")

    assert make(make_inputs()) == make(make_inputs(), ask=never)


@pytest.mark.parametrize("changed", [{"origin": "second"}, {"max_length": 5}, {"beams": 2}])
def test_units_of_another_teacher_or_of_other_settings_are_discarded(make, tmp_path, changed):
    inputs = make_inputs()

    def die(teacher, chosen, **options):
        if len(chosen) == 2:
            raise KeyboardInterrupt
        return [[9]] * len(chosen)

    with pytest.raises(KeyboardInterrupt):
        make(inputs, ask=die)
    assert len(list((tmp_path / "units").glob("*.npz"))) == 3
    make(inputs, **changed)
    limit = changed.get("max_length", MAX_LENGTH)
    assert stored(tmp_path / "answers") == [one[:limit].tolist() for one in inputs]


@pytest.mark.parametrize("name", ["answers.npy", "ends.npy", "answers.json"])
@pytest.mark.parametrize("how", ["bits", "gone"])
def test_damaged_answers_are_refused(make, tmp_path, name, how):
    make(make_inputs())
    damage(tmp_path / "answers" / name, how)
    with pytest.raises(UserError, match=f"{name} is (damaged|missing).*switch-distill answer"):
        read_answers(tmp_path / "answers")


def test_pairs_with_answers_are_the_inputs_and_the_answers(make, tmp_path):
    rng = np.random.default_rng(3)
    train = make_pairs(rng.integers(1, 9, 30), rng.integers(1, 9, 30), sources=rng.integers(0, 2, 30))
    more = make_pairs(rng.integers(1, 9, 20), np.zeros(20, int))
    given = [one for part in (train, more) for one, _ in texts_of(part)]
    make([np.array(one) for one in given], eos=EOS)
    joined = with_answers([train, more], read_answers(tmp_path / "answers"))
    assert texts_of(joined) == list(zip(given, stored(tmp_path / "answers"), strict=True))
    assert joined.sources.tolist() == [*train.sources.tolist(), *more.sources.tolist()]
    alone = with_answers([train], (joined.tokens[:60], np.arange(2, 61, 2)))
    assert [target for _, target in texts_of(alone)] == [joined.tokens[a : a + 2].tolist() for a in range(0, 60, 2)]


def test_another_number_of_inputs_than_of_answers_is_refused(make, tmp_path):
    make(make_inputs(20))
    with pytest.raises(UserError, match="there are 20 answers for 19 inputs"):
        with_answers([make_pairs([3] * 19, [2] * 19)], read_answers(tmp_path / "answers"))
