"""The evaluated examples of a prepared task, and damage to its files."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from distill.data.read_prepared import read_prepared
from distill.errors import UserError
from distill.tasks.prepared import PreparedPairs, length_order
from tests.damage import damage
from tests.distill.tasks.conftest import write_rows
from tests.distill.tasks.test_prepare import expected_split, rendered, texts


def even(available, count):
    """Examples of each group: one after the other from all groups that have one left."""
    given = Counter()
    while count and sum(given.values()) < sum(available.values()):
        for group in sorted(available, key=lambda one: (given[one], one)):
            if given[group] < available[group]:
                given[group] += 1
                count -= 1
                break
    return given


@pytest.mark.parametrize("split", ["test", "validation"])
@pytest.mark.parametrize("count", [1, 9, 30, 10_000])
def test_evaluated_examples_are_of_all_groups_evenly(prepared, pairs_config, rows, split, count):
    config = pairs_config.model_copy(update={"eval_split": split, "test_examples": count})
    examples = prepared.task_examples(config)
    held_out = [row for row in rows if expected_split(row["source"]) == split]
    available = Counter(row["language"] for row in held_out)
    assert len(examples.inputs) == min(count, len(held_out))
    # Which group has one example more than the others does not matter.
    assert sorted(Counter(examples.groups).values()) == sorted(even(available, count).values())
    assert all(one <= available[group] for group, one in Counter(examples.groups).items())
    known = {rendered(row): row["language"] for row in held_out}
    pairs = list(zip(examples.inputs, examples.references, strict=True))
    assert len(set(pairs)) == len(pairs) and [known[pair] for pair in pairs] == examples.groups


def test_an_evaluated_example_is_described_by_its_row(prepared, pairs_config, rows):
    examples, row_numbers = prepared.task_examples(pairs_config), prepared.evaluated_rows(pairs_config)
    of_tokens = texts(prepared, "test")
    sources = {rendered(row)[0]: row["source"] for row in rows}
    for number, row in enumerate(row_numbers.tolist()):
        assert (examples.inputs[number], examples.references[number]) == of_tokens[row]
        assert examples.columns[number] == {
            "language": examples.groups[number],
            "source": sources[examples.inputs[number]],
        }
        ids = prepared.tokenizer(examples.references[number], add_special_tokens=False).input_ids
        assert examples.target_tokens[number] == len(ids) + 1
    # Pairs count as one document exactly if they have the same value of split_by.
    values = [columns["source"] for columns in examples.columns]
    for one in range(len(values)):
        same = np.array(values) == values[one]
        assert (same == (examples.documents == examples.documents[one])).all()
    assert len(set(values)) < len(values) and examples.documents.max() + 1 == len(set(values))


def test_references_are_whole_where_the_targets_are_truncated(prepare, rows, pairs_config):
    data = prepare(max_input=12, max_target=34)
    examples = data.task_examples(pairs_config)
    assert set(zip(examples.inputs, examples.references, strict=True)) <= {rendered(row) for row in rows}
    assert examples.target_tokens.max() == 34


def test_the_choice_does_not_depend_on_the_order_of_rows(prepare, prepared, pairs_config, rows, tmp_path):
    data = prepare(
        {"tokenizer": f"{prepared.directory}/tokenizer"}, examples=write_rows(tmp_path / "a", [*rows[60:], *rows[:60]])
    )
    found = [set(one.task_examples(pairs_config).inputs) for one in (data, prepared)]
    assert len(found[0] & found[1]) == len(found[0])


def test_a_task_without_groups_has_none(prepare, pairs_config):
    assert prepare(group=None).task_examples(pairs_config).groups is None


def test_a_split_that_was_not_made_is_named(prepare, pairs_config):
    with pytest.raises(UserError, match="has no validation split; set data.validation_fraction"):
        prepare({"validation_fraction": 0.0}).pairs("validation")


@pytest.mark.parametrize("name", ["train.bin", "train.pairs", "test.bin", "test.pairs", "test.jsonl"])
@pytest.mark.parametrize("how", ["bits", "cut", "gone"])
def test_a_damaged_file_is_refused(prepared, pairs_config, tmp_path, name, how):
    directory = shutil.copytree(prepared.directory, tmp_path / "copy")
    damage(directory / name, how)
    data = read_prepared(Path(directory))
    assert isinstance(data, PreparedPairs)
    with pytest.raises(UserError, match=f"{name} is (damaged|missing).*; delete .* and run the same command again"):
        (data.pairs("train"), data.pairs("test"), data.task_examples(pairs_config))


@pytest.mark.parametrize("old,new", [('"task"', '"tusk"'), ('"groups"', '"grips"'), ("{", "[")])
def test_a_damaged_record_is_refused(prepared, tmp_path, old, new):
    directory = Path(shutil.copytree(prepared.directory, tmp_path / "copy"))
    record = (directory / "data.json").read_text()
    (directory / "data.json").write_text(record.replace(old, new, 1))
    with pytest.raises(UserError, match="data.json is .*; delete .* and run the same command again"):
        read_prepared(directory)


@pytest.mark.parametrize("count,size", [(1, 8), (7, 8), (64, 8), (1000, 16), (1003, 16)])
def test_examples_that_stand_together_have_similar_lengths(count, size):
    rng = np.random.default_rng(0)
    inputs, targets = rng.integers(1, 200, count), rng.integers(1, 50, count).astype(np.uint32)
    order = length_order(inputs, targets, size)
    assert sorted(order.tolist()) == list(range(count))
    if count < 1000:
        return

    def padded(rows):
        starts = range(0, count, size)
        return sum(inputs[rows[a : a + size]].max() + targets[rows[a : a + size]].max() for a in starts) * size

    assert padded(order) < 1.25 * (inputs.sum() + targets.sum()) < padded(np.arange(count)) / 1.2
