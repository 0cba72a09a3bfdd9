"""The preparation of a task against its rows and plain Python."""

import hashlib
import json

import pytest

from distill.data import key
from distill.data.corpus import split_of
from distill.errors import UserError
from distill.tasks import prepare as prepare_module
from distill.tasks.config import TaskConfig
from tests.distill.tasks.conftest import write_rows

PARTS = ("train", "test", "validation")


def texts(data, part):
    """Decoded input and target of each pair of a split, which must end with eos."""
    pairs, eos = data.pairs(part), data.special_tokens.eos
    found = []
    for start, middle, end in zip(pairs.starts, pairs.middles, pairs.ends, strict=True):
        both = pairs.tokens[start:middle].tolist(), pairs.tokens[middle:end].tolist()
        assert all(ids.count(eos) == 1 and ids[-1] == eos for ids in both if ids)
        found.append(tuple(data.tokenizer.decode(ids[:-1]) for ids in both))
    return found


def rendered(row):
    return f"to {row['language']}: {row['source']}", row["target"]


def expected_split(value, test=0.25, validation=0.2):
    return split_of(hashlib.sha256(value.encode()).digest(), test, validation)


def test_each_pair_is_whole_in_the_split_of_its_value(prepared, rows):
    for part in PARTS:
        expected = [rendered(row) for row in rows if expected_split(row["source"]) == part]
        assert texts(prepared, part) == expected and len(expected) > 10
        assert prepared.parts[part].documents == len(
            {row["source"] for row in rows} & {row["source"] for row in rows if expected_split(row["source"]) == part}
        )
    assert prepared.task["truncated"] == {part: [0, 0] for part in PARTS}


def test_without_a_column_the_input_decides_the_split(prepare, rows):
    data = prepare(split_by=None)
    found = {part: texts(data, part) for part in PARTS}
    for part in PARTS:
        assert found[part] == [rendered(row) for row in rows if expected_split(rendered(row)[0]) == part]
    assert found["train"] != texts(prepare(), "train")


def test_long_texts_are_truncated_counted_and_keep_eos(prepare, prepared, rows):
    data = prepare({"tokenizer": f"{prepared.directory}/tokenizer"}, max_input=12, max_target=34)
    for part in PARTS:
        whole, cut = prepared.pairs(part), data.pairs(part)
        assert cut.input_lengths.tolist() == [min(length, 12) for length in whole.input_lengths.tolist()]
        assert cut.target_lengths.tolist() == [min(length, 34) for length in whole.target_lengths.tolist()]
        truncated = [int((whole.input_lengths > 12).sum()), int((whole.target_lengths > 34).sum())]
        assert data.task["truncated"][part] == truncated and min(truncated) > 0
        for (before_input, before_target), after in zip(texts(prepared, part), texts(data, part), strict=True):
            assert before_input.startswith(after[0]) and before_target.startswith(after[1])
    lengths = data.lengths(None)
    assert (lengths.inputs, lengths.targets) == (12, 34)
    mean = data.mean_lengths(None)
    assert mean.inputs == pytest.approx(data.pairs("train").input_lengths.mean())
    assert mean.targets == pytest.approx(data.pairs("train").target_lengths.mean())


def test_overlap_is_the_share_of_targets_that_are_training_targets(prepare, tmp_path, rows):
    few = [{**row, "target": f"label {len(row['source']) % 17}"} for row in rows]
    data = prepare(examples=write_rows(tmp_path / "a", few))
    targets = {part: [target for _, target in texts(data, part)] for part in PARTS}
    train = set(targets["train"])
    for part in ("test", "validation"):
        expected = sum(target in train for target in targets[part]) / len(targets[part])
        assert data.parts[part].overlap == pytest.approx(expected) and expected > 0
    assert data.parts["train"].overlap is None
    for part in ("test", "validation"):
        assert prepare().parts[part].overlap == 0


def test_unseen_tokens_are_those_that_no_training_pair_has(prepare):
    data = prepare()
    seen = set(data.pairs("train").tokens.tolist())
    shares = []
    for part in ("test", "validation"):
        tokens = data.pairs(part).tokens.tolist()
        shares.append(sum(token not in seen for token in tokens) / len(tokens))
        assert data.parts[part].unseen == pytest.approx(shares[-1])
    assert max(shares) > 0 and data.parts["train"].unseen is None


def test_a_mixture_has_its_sources_and_weights(prepare, tmp_path, rows):
    half = write_rows(tmp_path / "half", rows[:40])
    mixture = [{"source": half, "weight": 2.0, "name": "half"}, {"source": write_rows(tmp_path / "b", rows[40:])}]
    data = prepare(examples=mixture, group=None)
    assert data.task["weights"] == [2.0, 1.0] and data.task["groups"] == ["half", f"jsonl:{tmp_path}/b"]
    assert data.name == f"{half} + jsonl:{tmp_path}/b"
    for part in PARTS:
        sources = [int(row >= 40) for row in range(len(rows)) if expected_split(rows[row]["source"]) == part]
        assert data.pairs(part).sources.tolist() == sources


def test_unlabelled_inputs_of_held_out_values_are_left_out(prepare, tmp_path, rows):
    more = [{"language": "nl", "source": f"new {number}"} for number in range(30)]
    inputs = [{"language": row["language"], "source": row["source"]} for row in rows] + more
    data = prepare(unlabelled=write_rows(tmp_path / "inputs", inputs))
    expected = [(f"to {row['language']}: {row['source']}", "") for row in inputs]
    expected = [pair for pair, row in zip(expected, inputs, strict=True) if expected_split(row["source"]) == "train"]
    assert texts(data, "unlabelled") == expected
    assert data.pairs("unlabelled").target_lengths.max() == 0
    assert data.parts["unlabelled"].overlap is None
    assert set(data.pairs("unlabelled").sources.tolist()) == {1}  # not the first source, which may have a weight
    assert {pair[0] for pair in expected}.isdisjoint(pair[0] for pair in texts(data, "test"))


def test_reading_stops_after_train_tokens(prepare, prepared, rows, tmp_path):
    lines = [{**rows[number % len(rows)], "source": f"{number} text"} for number in range(4000)]
    data = prepare({"train_tokens": 2000}, examples=write_rows(tmp_path / "a", lines))
    whole = prepare(examples=f"jsonl:{tmp_path}/a")
    assert 2000 <= data.parts["train"].tokens < whole.parts["train"].tokens / 2


def test_bad_rows_are_skipped_and_counted(prepare, tmp_path, rows):
    source = write_rows(tmp_path / "a", [*rows[:50], {"source": "x"}, *rows[50:], {**rows[0], "target": " "}])
    with pytest.raises(UserError, match=f"line 51 of {tmp_path}/a has no column 'language'"):
        prepare(examples=source)
    data = prepare({"bad_rows": "skip"}, examples=source)
    assert data.skipped_rows == 2 and data.first_skipped.startswith(f"line 51 of {tmp_path}/a has no column")
    assert sum(data.task["lengths"][part]["examples"] for part in PARTS) == len(rows)


def refused(prepare, root, says, of_data=None, **changes):
    """The preparation fails with a sentence, and leaves nothing in its directory."""
    with pytest.raises(UserError, match=says):
        prepare(of_data, root=root, **changes)
    assert not [path for path in root.glob("**/*") if path.suffix != ".lock"]


def test_what_cannot_be_a_task_is_refused(prepare, tmp_path, rows):
    root = tmp_path / "data"
    refused(prepare, root, r"\d+ of \d+ training targets are longer than task.max_target; raise it", max_target=4)
    german = write_rows(tmp_path / "german", [row for row in rows if row["language"] == "de"])
    refused(prepare, root, "all pairs are in group 'de'; leave out task.group", examples=german)
    one = write_rows(tmp_path / "one", [{**row, "source": "same"} for row in rows])
    refused(prepare, root, "the .* part of the task is empty .*; use more pairs or another", examples=one)
    bad = write_rows(tmp_path / "bad", [{"x": 1}] * 3)
    refused(prepare, root, "all 3 rows are bad; the first: line 1", {"bad_rows": "skip"}, examples=bad)
    held_out = [row for row in rows if expected_split(row["source"]) == "test"]
    own = [{"source": german, "split_by": "source", "input": "{source}"}, {"source": german}]
    with pytest.raises(ValueError, match="unlabelled needs sources with the task's own input and split_by; leave"):
        TaskConfig(examples=own, unlabelled=german)
    first = [{"source": write_rows(tmp_path / "all", rows * 9)}, {"source": german}]
    reached = "no pair of jsonl:.*/german is in the training split; raise data.train_tokens, which ends"
    refused(prepare, root, reached, {"train_tokens": 100}, examples=first)
    inputs = write_rows(tmp_path / "inputs", held_out)
    refused(prepare, root, "the unlabelled part of the task is empty", unlabelled=inputs)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
def test_a_preparation_that_is_stopped_leaves_nothing(prepare, tmp_path, monkeypatch, stop):
    encode = prepare_module.encode_texts
    calls = []

    def die(tokenizer, batch):
        calls.append(batch)
        if len(calls) == 2:
            raise stop
        return encode(tokenizer, batch)

    monkeypatch.setattr(prepare_module, "encode_texts", die)
    monkeypatch.setattr(prepare_module, "_BATCH", 16)
    with pytest.raises(stop):
        prepare(root=tmp_path)
    assert not [path for path in tmp_path.glob("**/*") if path.suffix != ".lock"]
    monkeypatch.undo()
    whole = prepare(root=tmp_path)
    assert len(calls) == 2 and whole.parts["train"].tokens


def test_what_a_killed_preparation_leaves_is_removed(prepare, prepared, tmp_path):
    name = prepared.directory.rpartition("/")[2]
    left = tmp_path / f".{name}.12345"
    left.mkdir(parents=True)
    (left / "train.bin").write_bytes(b"half")
    assert prepare(root=tmp_path).fingerprint == prepared.fingerprint and not left.exists()


def test_the_fingerprint_changes_with_texts_and_groups_alone(prepare, prepared, rows, tmp_path):
    def fingerprint(name, changed, **settings):
        return prepare(examples=write_rows(tmp_path / name, changed), **settings).fingerprint

    assert fingerprint("same", rows) == prepared.fingerprint
    assert fingerprint("metrics", rows, metrics=["bleu", "chrf"]) == prepared.fingerprint
    others = [
        fingerprint("target", [{**rows[0], "target": "other"}, *rows[1:]]),
        fingerprint("order", rows[::-1]),
        fingerprint("fewer", rows[:-1]),
        fingerprint("group", [{**row, "of": row["language"].replace("it", "other")} for row in rows], group="of"),
        fingerprint("template", rows, input="in {language}: {source}"),
        fingerprint("length", rows, max_input=20),
    ]
    assert len({prepared.fingerprint, *others}) == 1 + len(others)


def test_the_key_depends_on_the_version_of_an_embedded_source(pairs_config, monkeypatch):
    dates, embedded = TaskConfig(examples="babel:dates"), key.EMBEDDED["babel:dates"]
    keys = [key.data_key(pairs_config, dates)]
    for version in (1, embedded.version + 1):
        monkeypatch.setitem(key.EMBEDDED, "babel:dates", embedded._replace(version=version))
        keys.append(key.data_key(pairs_config, dates))
    assert len(set(keys)) == 3


def test_the_key_depends_on_files_and_on_all_settings_but_metrics(pairs_config, task, rows, tmp_path):
    source = write_rows(tmp_path / "a", rows)
    base = TaskConfig.model_validate({**task.model_dump(), "examples": source, "unlabelled": source})
    first = key.data_key(pairs_config, base)
    changed = {"max_input": 9, "max_target": 9, "group": None, "split_by": None, "unlabelled": None, "input": "{x}"}
    keys = [key.data_key(pairs_config, base.model_copy(update={name: value})) for name, value in changed.items()]
    keys += [key.data_key(pairs_config.model_copy(update={"vocabulary": 401}), base), key.data_key(pairs_config)]
    assert key.data_key(pairs_config, base.model_copy(update={"metrics": []})) == first
    assert key.data_key(pairs_config.model_copy(update={"test_examples": 5, "input_length": 8}), base) == first
    write_rows(tmp_path / "a", [*rows, rows[0]])
    keys.append(key.data_key(pairs_config, base))
    assert len({first, *keys}) == 1 + len(keys)


def test_prepared_data_is_reused_without_reading_the_source(prepare, prepared, monkeypatch):
    monkeypatch.setattr(prepare_module, "prepare_pairs", None)
    again = prepare()
    assert json.dumps(again.task) == json.dumps(prepared.task) and again.sha256 == prepared.sha256
