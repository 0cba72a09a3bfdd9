import gzip
import json

import datasets
import pytest

from distill.data.corpus import Digest, Document, corpus_files, read_documents, split_of
from distill.errors import UserError

TEXTS = ["first text", "second\ntext", "  ", "dritter Text mit ü"]
KEPT = [TEXTS[0], TEXTS[1], TEXTS[3]]  # blank documents are skipped


def texts(*arguments) -> list[str]:
    return [document.text for document in read_documents(*arguments)]


def split(text: str, *fractions: float) -> str:
    return split_of(Document(text).key, *fractions)


@pytest.fixture
def rows():
    return [{"text": text, "url": str(number)} for number, text in enumerate(TEXTS)]


def test_stdlib_is_the_real_one_without_its_tests():
    files = corpus_files("stdlib")
    names = {path.name for path in files}
    assert {"argparse.py", "topics.py", "decimal.py"} <= names
    assert not any({"test", "tests", "site-packages"} & set(path.parts[-4:-1]) for path in files)
    assert 8e6 < sum(path.stat().st_size for path in files) < 30e6
    assert next(read_documents("stdlib")).text


def test_text_files_are_documents_in_a_fixed_order(tmp_path):
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")
    assert texts(f"text:{tmp_path}/*.txt") == KEPT


@pytest.mark.parametrize("open_file,suffix", [(open, "json"), (gzip.open, "json.gz")])
def test_jsonl_rows_are_documents(tmp_path, rows, open_file, suffix):
    """C4's files have this format: gzipped JSON lines with text and url."""
    with open_file(tmp_path / f"c4-train.00000-of-00001.{suffix}", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    assert texts(f"jsonl:{tmp_path}/c4-train.*.{suffix}") == KEPT


def test_parquet_and_another_column(tmp_path, rows):
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "part.parquet")
    assert texts(f"parquet:{tmp_path}/*.parquet") == KEPT
    assert texts(f"parquet:{tmp_path}/*.parquet", "url") == ["0", "1", "2", "3"]


def test_a_data_set_in_the_hubs_format_with_a_config(tmp_path, rows):
    """A directory with the layout of a hub repository: a card with configs, and files for each config."""
    for config, part in (("en", rows), ("de", rows[3:])):
        (tmp_path / config).mkdir()
        datasets.Dataset.from_list(part).to_parquet(tmp_path / config / "train.parquet")
    card = "".join(
        f"- config_name: {c}\n  data_files:\n  - split: train\n    path: {c}/train.parquet\n" for c in ("en", "de")
    )
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{card}---\n")
    assert texts(f"hf:{tmp_path}:en") == KEPT
    assert texts(f"hf:{tmp_path}:de") == KEPT[2:]


@pytest.mark.parametrize(
    "corpus,message",
    [
        ("stdlb", "use one of stdlib, text:GLOB"),
        ("text:", "use one of"),
        ("text:/nowhere/*.txt", "matches no file"),
        ("jsonl:{tmp}/bad.jsonl", "line 2 of {tmp}/bad.jsonl is not JSON"),
        ("text:{tmp}/latin.txt", "{tmp}/latin.txt is not UTF-8 text"),
        ("jsonl:{tmp}/other.jsonl", "line 1 of {tmp}/other.jsonl has no column 'text' .columns: body."),
        ("parquet:{tmp}/bad.jsonl", "{tmp}/bad.jsonl cannot be read as Parquet"),
        ("hf:{tmp}/nothing", "not a name on the hub either"),
    ],
)
def test_a_corpus_that_cannot_be_used_is_named(tmp_path, corpus, message):
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    (tmp_path / "other.jsonl").write_text('{"body": "fine"}\n')
    (tmp_path / "latin.txt").write_bytes("für".encode("latin-1"))
    with pytest.raises(UserError, match=message.format(tmp=tmp_path)):
        list(read_documents(corpus.format(tmp=tmp_path)))


def test_the_split_depends_on_the_text_alone():
    documents = [f"document {number}" for number in range(4000)]
    held_out = [text for text in documents if split(text, 0.1) == "test"]
    assert 320 < len(held_out) < 480
    assert set(held_out) == {text for text in reversed(documents) if split(text, 0.1) == "test"}
    assert set(held_out) <= {text for text in documents if split(text, 0.2) == "test"}


def test_a_validation_part_is_taken_from_the_training_part_alone():
    documents = [f"document {number}" for number in range(4000)]
    parts = {text: split(text, 0.1, 0.2) for text in documents}
    assert {t for t in documents if parts[t] == "test"} == {t for t in documents if split(t, 0.1) == "test"}
    assert 700 < sum(part == "validation" for part in parts.values()) < 900


def test_the_digest_sees_every_byte_and_every_border():
    def digest(*texts):
        total = Digest()
        for text in texts:
            total.add(Document(text))
        return total.hexdigest()

    assert len(digest("a")) <= 36
    assert len({digest("ab", "c"), digest("a", "bc"), digest("abc"), digest("ab", "d"), digest("c", "ab")}) == 5


def test_a_group_decides_the_split_in_place_of_the_text():
    one, other = Document("a", "de"), Document("b", "de")
    assert one.key == other.key != Document("a").key and one.digest != other.digest


def test_directories_of_the_standard_library_are_the_same_on_every_machine():
    groups = {document.group for document in read_documents("stdlib", split_by="directory")}
    assert {".", "json", "email/mime"} <= groups
