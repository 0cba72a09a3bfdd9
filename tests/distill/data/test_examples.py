import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.config import DataConfig
from distill.data import corpus, prepare
from distill.data.corpus import read_documents, split_of
from distill.data.examples import Examples
from distill.data.prepare import prepare_data
from distill.data.prepared_data import TEXT
from distill.data.tokenizer import encode_texts
from distill.errors import DiskFull, UserError


def rebuild(data, inputs, targets):
    """The raw tokens of one example."""
    first = data.special_tokens.sentinel_start - data.special_tokens.sentinels
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
        own = [one for one in documents if split_of(one.key, data_config.test_fraction) == split]
        texts = encode_texts(data.tokenizer, [one.text for one in own])
        assert data.tokens(split).tolist() == [token for ids in texts for token in ids]
        ends = np.fromfile(Path(data.directory) / f"{split}.documents", TEXT)["end"]
        assert ends.tolist() == np.cumsum([len(ids) for ids in texts]).tolist()
        assert data.parts[split].documents == len(own)
    assert sum(part.documents for part in data.parts.values()) == len(documents)


def test_models_can_be_evaluated_on_a_validation_part_of_its_own(data_config, tmp_path):
    config = data_config.model_copy(update={"validation_fraction": 0.2})
    validated = config.model_copy(update={"eval_split": "validation", "test_examples": 8})
    data = prepare_data(config, tmp_path)
    documents = list(read_documents(config.corpus))
    texts = [one.text for one in documents if split_of(one.key, 0.2, 0.2) == "validation"]
    assert data.parts["validation"].documents == len(texts) > 0
    assert data.tokens("validation").tolist() == [token for ids in encode_texts(data.tokenizer, texts) for token in ids]
    assert sum(part.documents for part in data.parts.values()) == len(documents)
    examples = Examples(data, validated, seed=None)
    first = rebuild(data, *(side[0] for side in examples.batch(range(1))))
    assert first == data.tokens("validation")[: len(first)].tolist()
    with pytest.raises(UserError, match="the validation part of .* raise data.validation_fraction"):
        data.layout(validated.model_copy(update={"test_examples": 10_000}))


@pytest.fixture
def rows(tmp_path) -> str:
    """600 rows, with twelve languages in turn."""
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
    with open(tmp_path / "rows.jsonl", "w") as file:
        for number in range(600):
            text = " ".join(words[(number * step) % 8] for step in range(2, 12)) + f" {number}"
            file.write(json.dumps({"text": text, "language": f"l{number % 12}", "number": number % 12}) + "\n")
    return f"jsonl:{tmp_path}/rows.jsonl"


@pytest.mark.parametrize("column", ["language", "number"])
def test_rows_with_one_value_of_split_by_are_one_document_on_one_side(rows, column, tmp_path):
    config = DataConfig(
        corpus=rows, split_by=column, vocabulary=400, input_length=32, test_fraction=0.3, test_examples=12
    )
    data = prepare_data(config, tmp_path / "data")
    groups = {"train": set(), "test": set()}
    for document in read_documents(rows, split_by=column):
        groups[split_of(document.key, 0.3)].add(document.group)
    assert groups["train"] and groups["test"] and not groups["train"] & groups["test"]
    assert {name: part.documents for name, part in data.parts.items()} == {k: len(v) for k, v in groups.items()}
    assert len(set(data.evaluated(config).documents)) == len(groups["test"])
    by_row = prepare_data(config.model_copy(update={"split_by": None}), tmp_path / "data")
    assert by_row.fingerprint != data.fingerprint and by_row.parts["test"].documents > 100


def test_other_groups_of_the_same_rows_are_other_data(rows, tmp_path):
    """Tokenizer, texts and tokens are equal; only the grouping of the split differs."""
    config = DataConfig(corpus=rows, split_by="language", vocabulary=400, input_length=32, test_fraction=0.3)
    config = config.model_copy(update={"test_examples": 12})
    first = prepare_data(config, tmp_path / "data")
    loaded = config.model_copy(update={"tokenizer": f"{first.directory}/tokenizer"})
    one = prepare_data(loaded, tmp_path / "data")
    path = Path(rows.removeprefix("jsonl:"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**line, "language": line["language"] + "x"}) + "\n" for line in lines))
    other = prepare_data(loaded, tmp_path / "data")
    assert other.digest == one.digest and other.fingerprint != one.fingerprint


def test_files_of_one_directory_are_one_document(tmp_path, monkeypatch):
    for number in range(60):
        path = tmp_path / "texts" / f"d{number % 10}" / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text number {number} of many, which says nothing more " * 3)
    corpus = f"text:{tmp_path}/texts/*/*.txt"
    options = {"vocabulary": 400, "input_length": 16, "test_fraction": 0.3, "test_examples": 4}
    data = prepare_data(DataConfig(corpus=corpus, split_by="directory", **options), tmp_path / "data")
    assert data.parts["train"].documents + data.parts["test"].documents == 10
    monkeypatch.chdir(tmp_path)
    relative = prepare_data(DataConfig(corpus="text:texts/*/*.txt", split_by="directory", **options), tmp_path / "data")
    assert relative.fingerprint == data.fingerprint  # the split does not depend on the place of the files
    with pytest.raises(UserError, match="data.split_by is 'language', but .* has files; use directory"):
        prepare_data(DataConfig(corpus=corpus, split_by="language", **options), tmp_path / "data")


def test_the_overlap_of_held_out_text_is_in_the_facts(tmp_path):
    """Every document begins with a unique line and ends with one of three licences."""
    rng = np.random.default_rng(0)
    words = [f"word{number}" for number in range(300)]
    licences = [" ".join(rng.choice(words, 60)) for _ in range(3)]
    for number in range(80):
        own = " ".join(rng.choice(words, 60))
        (tmp_path / f"{number}.txt").write_text(f"{own} {licences[number % 3]}")
    config = DataConfig(corpus=f"text:{tmp_path}/*.txt", vocabulary=700, test_fraction=0.2, validation_fraction=0.2)
    parts = prepare_data(config, tmp_path / "data").parts
    assert parts["train"].overlap is None
    assert parts["test"].overlap == pytest.approx(0.5, abs=0.05)
    assert parts["validation"].overlap == pytest.approx(0.5, abs=0.05)
    assert parts["train"].unseen is None and parts["test"].unseen == parts["validation"].unseen == 0


def test_a_corpus_is_read_once(data_config, tmp_path, monkeypatch):
    read = []

    def read_and_count(*arguments):
        for document in read_documents(*arguments):
            read.append(document)
            yield document

    monkeypatch.setattr(prepare, "read_documents", read_and_count)
    prepare_data(data_config, tmp_path / "data")
    assert len(read) == 60


def test_a_text_is_hashed_once(data_config, tmp_path, monkeypatch):
    hashed, sha256 = [], hashlib.sha256
    texts = {document.text.encode() for document in read_documents(data_config.corpus)}
    monkeypatch.setattr(corpus.hashlib, "sha256", lambda data=b"": hashed.append(data) or sha256(data))
    prepare_data(data_config, tmp_path / "data")
    assert len([data for data in hashed if data in texts]) == 60


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
    n = len(examples)
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


def test_evaluated_examples_are_the_same_for_everyone_and_of_many_documents(data, data_config):
    examples = Examples(data, data_config, seed=None)
    whole = examples.batch(range(12))
    single = [torch.cat(side) for side in zip(*(examples.batch([index]) for index in range(12)), strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(whole, single, strict=True))
    chosen = data.evaluated(data_config)
    texts = [rebuild(data, *row) for row in zip(*whole, strict=True)]
    assert texts == chosen.tokens.tolist() and len({tuple(text) for text in texts}) == 12
    everything = data.tokens("test").tolist()
    joined = " ".join(map(str, everything))
    assert all(" ".join(map(str, text)) in joined for text in texts)
    counts = np.bincount(chosen.documents)
    assert len(counts[counts > 0]) == min(12, len(data.layout(data_config).units)) and counts.max() <= 2


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
@pytest.mark.parametrize("name", ["train.bin", "test.bin", "test.documents", "tokenizer/tokenizer.json"])
def test_damaged_prepared_data_is_named_with_the_cure(prepared, data_config, tmp_path, name, how):
    broken(Path(prepared.directory, name), how)
    again = prepare_data(data_config, tmp_path / "data")  # only files that are read are checked
    with pytest.raises(UserError, match=f"{name} is (damaged|missing).*; delete .*/data/.* to prepare the text again"):
        if name.startswith("tokenizer"):
            _ = again.tokenizer
        else:
            Examples(again, data_config, seed=None if name.startswith("test") else 0)


def test_damaged_facts_of_prepared_data_are_named_with_the_cure(prepared, data_config, tmp_path):
    path = Path(prepared.directory, "data.json")
    path.write_text(path.read_text().replace('"tokens": ', '"tokens": 1'))
    with pytest.raises(UserError, match="data.json is damaged: its values do not match .*; delete"):
        prepare_data(data_config, tmp_path / "data")


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
    assert 100 <= part.parts["train"].tokens < whole.parts["train"].tokens / 4 and part.digest != whole.digest


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
        data.layout(data_config.model_copy(update=change))


def test_vocabulary_is_rounded_up_as_in_t5(data):
    assert data.vocab_size % 128 == 0 and 0 <= data.vocab_size - data.special_tokens.vocabulary_size < 128
    assert np.iinfo(data.tokens("train").dtype).max >= data.special_tokens.vocabulary_size
