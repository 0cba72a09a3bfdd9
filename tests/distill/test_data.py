import json
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.config import DataConfig
from distill.corpus import read_documents, split_of
from distill.data import Examples
from distill.errors import DiskFull, UserError
from distill.prepare import example_lengths, prepare_data
from distill.tokenizer import encode


def rebuild(data, inputs, targets):
    """The raw tokens of one example."""
    first = data.words.sentinel_start - data.words.sentinels
    spans, current = {}, None
    for token in targets.tolist()[:-1]:
        if token > first:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    return [t for token in inputs.tolist()[:-1] for t in (spans[token] if token > first else [token])]


def test_the_two_sides_hold_the_documents_of_the_split(data, data_config):
    documents = list(read_documents(data_config.corpus))
    for split in ("train", "test"):
        texts = [text for text in documents if split_of(text, data_config.test_fraction) == split]
        expected = [token for ids in encode(data.tokenizer, texts) for token in ids]
        assert data.tokens(split).tolist() == expected
    assert data.train_documents + data.test_documents == len(documents)


def test_models_can_be_measured_on_a_validation_part_of_its_own(data_config, tmp_path):
    config = data_config.model_copy(update={"validation_fraction": 0.2})
    tuned = config.model_copy(update={"eval_split": "validation", "test_examples": 8})
    data = prepare_data(config, tmp_path)
    documents = list(read_documents(config.corpus))
    texts = [text for text in documents if split_of(text, 0.2, 0.2) == "validation"]
    assert data.validation_documents == len(texts) > 0
    assert data.tokens("validation").tolist() == [token for ids in encode(data.tokenizer, texts) for token in ids]
    assert data.train_documents + data.test_documents + data.validation_documents == len(documents)
    shown = Examples(data, tuned, seed=None)._raw(0)
    assert shown.tolist() == data.tokens("validation")[: len(shown)].tolist()
    with pytest.raises(UserError, match="the validation part of .* raise data.validation_fraction"):
        example_lengths(data, tuned.model_copy(update={"test_examples": 10_000}))


def test_examples_hold_the_text_in_fixed_lengths(data, data_config):
    examples = Examples(data, data_config, seed=0)
    batch = examples.batch(range(6))
    assert batch.input_ids.shape == (6, 32) and batch.labels.shape == (6, examples.lengths.targets)
    assert batch.input_ids.dtype == batch.labels.dtype == torch.int64
    text = data.tokens("train").tolist()
    segments = [text[i : i + examples.raw_length] for i in range(0, len(text), examples.raw_length)]
    for inputs, targets in zip(*batch, strict=True):
        assert rebuild(data, inputs, targets) in segments


def test_an_epoch_reads_every_segment_once_and_the_next_in_another_order(data, data_config):
    examples = Examples(data, data_config, seed=0)
    n = examples.segments
    epochs = [
        [rebuild(data, *row) for row in zip(*examples.batch(range(e * n, e * n + n)), strict=True)] for e in range(2)
    ]
    assert epochs[0] != epochs[1] and sorted(epochs[0]) == sorted(epochs[1])


def test_an_example_is_a_function_of_seed_and_index(data, data_config):
    one, same, other = (Examples(data, data_config, seed=seed) for seed in (1, 1, 2))
    batch = one.batch([3, 500, 4])
    again = same.batch([500])
    assert torch.equal(batch.input_ids[1], again.input_ids[0]) and torch.equal(batch.labels[1], again.labels[0])
    assert not torch.equal(other.batch([3, 500, 4]).input_ids, batch.input_ids)


def test_test_examples_are_the_same_for_everyone_and_spread(data, data_config):
    examples = Examples(data, data_config, seed=None)
    whole = [torch.cat(part) for part in zip(*examples.evaluation_batches(5), strict=True)]
    single = [torch.cat(part) for part in zip(*examples.evaluation_batches(1), strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(whole, single, strict=True)) and len(whole[0]) == 12
    text = data.tokens("test").tolist()
    starts = [i * examples.segments // 12 * examples.raw_length for i in range(12)]
    assert len(set(starts)) == 12
    for start, inputs, targets in zip(starts, *whole, strict=True):
        assert rebuild(data, inputs, targets) == text[start : start + examples.raw_length]


def test_prepared_data_is_reused_until_a_file_changes(tmp_path):
    files = tmp_path / "corpus"
    files.mkdir()
    for number in range(40):
        (files / f"{number}.txt").write_text(f"text number {number} " * 10)
    config = DataConfig(corpus=f"text:{files}/*.txt", vocabulary=400, input_length=16, test_examples=4)
    said = []
    first = prepare_data(config, tmp_path / "data", said.append)
    assert prepare_data(config, tmp_path / "data", said.append) == first and len(said) == 1
    (files / "7.txt").write_text("another text")
    changed = prepare_data(config, tmp_path / "data", said.append)
    assert changed.digest != first.digest and changed.fingerprint != first.fingerprint and len(said) == 2
    assert not list((tmp_path / "data").glob(".*"))


@pytest.fixture
def prepared(tmp_path, data_config):
    return prepare_data(data_config, tmp_path / "data")


def broken(path, how):
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 4
    path.unlink()
    if how != "missing":
        path.write_bytes(content[:-2] if how == "cut" else content)


@pytest.mark.parametrize("how", ["flipped", "cut", "missing"])
@pytest.mark.parametrize("name", ["train.bin", "test.bin", "tokenizer/tokenizer.json"])
def test_damaged_prepared_data_is_named_with_the_cure(prepared, data_config, tmp_path, name, how):
    broken(Path(prepared.directory, name), how)
    again = prepare_data(data_config, tmp_path / "data")  # what is not read is not checked
    with pytest.raises(UserError, match=f"{name} is (damaged|missing).*; delete .*/data/.* prepares the text again"):
        if name.startswith("tokenizer"):
            _ = again.tokenizer
        else:
            Examples(again, data_config, seed=None if name.startswith("test") else 0)


def test_damaged_facts_of_prepared_data_are_named_with_the_cure(prepared, data_config, tmp_path):
    path = Path(prepared.directory, "data.json")
    path.write_text(path.read_text().replace('"train_tokens": ', '"train_tokens": 1'))
    with pytest.raises(UserError, match="data.json is damaged: its checksum .*; delete"):
        prepare_data(data_config, tmp_path / "data")


def test_data_that_was_prepared_without_checksums_is_used(prepared, data_config, tmp_path):
    path = Path(prepared.directory, "data.json")
    facts = {key: value for key, value in json.loads(path.read_text()).items() if key not in ("sha256", "checksum")}
    path.write_text(json.dumps(facts))
    old = prepare_data(data_config, tmp_path / "data")
    assert old.fingerprint == prepared.fingerprint and old.tokenizer
    assert torch.equal(
        Examples(old, data_config, seed=0).batch([3])[0], Examples(prepared, data_config, seed=0).batch([3])[0]
    )


def test_a_full_disk_leaves_nothing_of_a_preparation(data_config, small_disk):
    disk = small_disk(60_000)
    with pytest.raises(
        DiskFull, match=r"data/[0-9a-f]{16} cannot be written, the disk is full: .* are left; .*free some"
    ):
        prepare_data(data_config, disk / "data")
    assert not list(disk.iterdir())


def test_reading_stops_at_train_tokens(tmp_path):
    with open(tmp_path / "rows.jsonl", "w") as file:
        file.writelines(json.dumps({"text": f"document number {number} of many"}) + "\n" for number in range(2000))
    config = DataConfig(corpus=f"jsonl:{tmp_path}/rows.jsonl", vocabulary=400, train_tokens=100)
    part = prepare_data(config, tmp_path / "data")
    whole = prepare_data(config.model_copy(update={"train_tokens": None}), tmp_path / "data")
    assert 100 <= part.train_tokens < whole.train_tokens / 4 and part.digest != whole.digest


def test_an_empty_side_is_refused_and_leaves_nothing(tmp_path):
    (tmp_path / "one.txt").write_text("a single document")
    config = DataConfig(corpus=f"text:{tmp_path}/*.txt", vocabulary=400)
    with pytest.raises(UserError, match="part of .* is empty .*data.test_fraction"):
        prepare_data(config, tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "change,message",
    [
        ({"input_length": 30_000}, "one example needs"),
        ({"test_examples": 10_000}, "data.test_examples is 10000"),
        ({"input_length": 400, "mean_span_length": 1.0, "noise_density": 0.4, "test_examples": 1}, "sentinels"),
    ],
)
def test_examples_that_do_not_fit_the_data_are_refused(data, data_config, change, message):
    with pytest.raises(UserError, match=message):
        example_lengths(data, data_config.model_copy(update=change))


def test_vocabulary_is_rounded_up_as_in_t5(data):
    assert data.vocab_size % 128 == 0 and 0 <= data.vocab_size - data.words.size < 128
    assert np.iinfo(data.tokens("train").dtype).max >= data.words.size
