"""Rows as pairs; a row that is no pair is named with its file."""

import json

import pytest

from distill.errors import UserError
from distill.tasks.config import TaskConfig
from distill.tasks.pairs import bad_pairs, read_pairs

GOOD = {"s": "eins", "t": "one", "g": "de"}


def read(path, *lines, choice="refuse", with_target=True, **settings):
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    given = {"examples": f"jsonl:{path}", "input": "{g}: {s}", "target": "{t}", "group": "g", "split_by": "s"}
    task, bad_rows = TaskConfig.model_validate({**given, **settings}), bad_pairs(choice)
    return list(read_pairs(task.sources, [None], bad_rows, with_target=with_target)), bad_rows


def test_a_pair_has_the_texts_of_the_templates(tmp_path):
    rows = [GOOD, {"s": 2, "t": 2.5, "g": "it", "more": None}]
    [first, second], _ = read(tmp_path / "a", *rows)
    assert (first.input, first.target, first.group, first.split_by) == ("de: eins", "one", "de", "eins")
    assert (second.input, second.target, second.group, second.split_by) == ("it: 2", "2.5", "it", "2")
    assert first.columns == {"g": "de", "s": "eins"}  # those of the input
    assert first.text == "de: eins\none"


def test_the_split_follows_the_column_or_the_input(tmp_path):
    rows = [GOOD, {**GOOD, "g": "nl"}, {**GOOD, "t": "1"}]
    keys = [pair.key for pair in read(tmp_path / "a", *rows)[0]]
    assert len(set(keys)) == 1
    keys = [pair.key for pair in read(tmp_path / "a", *rows, split_by=None)[0]]
    assert keys[0] == keys[2] != keys[1]
    digests = [pair.digest for pair in read(tmp_path / "a", *rows, rows[0])[0]]
    assert digests[0] == digests[3] and len(set(digests)) == 3


def test_inputs_without_targets(tmp_path):
    [pair], _ = read(tmp_path / "a", {"s": "eins", "g": "de"}, with_target=False)
    assert (pair.input, pair.target) == ("de: eins", "")


def test_pairs_of_a_mixture_have_their_source_as_group(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(json.dumps({"s": name, "t": "x", "g": "nl"}))
    mixture = [{"source": f"jsonl:{tmp_path}/a"}, {"source": f"jsonl:{tmp_path}/b", "name": "second"}]
    mixture.append({"source": f"jsonl:{tmp_path}/c", "group": "g", "input": "third {s}"})
    task = TaskConfig.model_validate({"examples": mixture, "input": "{s}", "target": "{t}"})
    pairs = list(read_pairs(task.sources, [None] * 3, bad_pairs("refuse")))
    assert [pair.group for pair in pairs] == [f"jsonl:{tmp_path}/a", "second", "nl"]
    assert [pair.source for pair in pairs] == [0, 1, 2]
    assert [pair.input for pair in pairs] == ["a", "b", "third c"]


BAD = [
    ({"s": "x", "g": "de"}, "has no column 't' (columns: s, g)"),
    ({**GOOD, "t": None}, "has null in column 't', where text or a number is needed"),
    ({**GOOD, "s": ["x"]}, "has a list ['x'] in column 's', where text or a number is needed"),
    ({**GOOD, "g": True}, "has true in column 'g', where text or a number is needed"),
    ({**GOOD, "t": {"a": 1}}, "has an object {'a': 1} in column 't', where text or a number is needed"),
    ({**GOOD, "t": ""}, "has an empty target"),
    ({**GOOD, "t": " \n\t"}, "has an empty target"),
    ('{"s": "eins", "t": "a\\ud800", "g": "de"}', "has an unpaired surrogate ('\\ud800' at 1) in column 't'"),
    ("[1]", "is a list [1], where an object with columns is needed"),
    ('{"s": ', "is not JSON"),
]


@pytest.mark.parametrize("row,problem", BAD)
def test_a_bad_row_is_named_or_skipped_and_counted(tmp_path, row, problem):
    lines = [GOOD, GOOD, row, GOOD, row]
    with pytest.raises(UserError) as caught:
        read(tmp_path / "a.jsonl", *lines)
    assert str(caught.value).startswith(f"line 3 of {tmp_path}/a.jsonl {problem}")
    assert str(caught.value).endswith("or skip such rows with data.bad_rows: skip")
    pairs, bad_rows = read(tmp_path / "a.jsonl", *lines, choice="skip")
    assert len(pairs) == 3 and bad_rows.skipped == 2
    assert bad_rows.first.startswith(f"line 3 of {tmp_path}/a.jsonl {problem}")


def test_an_input_is_empty_if_its_columns_are_and_the_template_has_no_other_text(tmp_path):
    row = {**GOOD, "s": " "}
    assert read(tmp_path / "a", row)[0][0].input == "de:  "
    with pytest.raises(UserError, match="line 1 of .*/a has an empty input; fix the row"):
        read(tmp_path / "a", row, input="{s}")
