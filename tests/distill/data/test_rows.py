"""Rows of real files: other columns do not matter, and errors name the file and the row."""

import bz2
import csv
import gzip
import json
import lzma
import zipfile
from datetime import datetime

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill.data.corpus import BadRows, read_documents
from distill.errors import UserError

# Values of a column that is not read, in 3 rows each. They break a schema that is inferred for all rows.
CHANGING = {
    "missing, then text": [{}, {}, {"x": "y"}],
    "null, then text": [{"x": None}, {"x": None}, {"x": "y"}],
    "a number, then text": [{"x": 1}, {"x": 2.5}, {"x": "y"}],
    "a time, then text": [{"x": "2024-01-01T00:00:00"}, {"x": "2024-01-02 00:00:00"}, {"x": "soon"}],
    "a struct that changes": [{"x": {"a": 1}}, {"x": {"a": "b"}}, {"x": {"c": [1]}}],
    "a list, then a struct": [{"x": [1, 2]}, {"x": ["a"]}, {"x": {"a": []}}],
    "a large number, then none": [{"x": 2**70}, {"x": -1}, {"x": None}],
}


def texts(corpus, *arguments, **options) -> list[str]:
    return [document.text for document in read_documents(corpus, *arguments, **options)]


def json_lines(path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("kind", ["jsonl", "hf"])
@pytest.mark.parametrize("name", CHANGING)
def test_columns_that_are_not_read_may_change_within_a_file_and_between_files(tmp_path, kind, name):
    rows = [{"text": f"text {number}", **more} for number, more in enumerate(CHANGING[name])]
    json_lines(tmp_path / "a.jsonl", rows)
    json_lines(tmp_path / "b.jsonl", reversed(rows))
    corpus = f"hf:{tmp_path}" if kind == "hf" else f"jsonl:{tmp_path}/*.jsonl"
    assert texts(corpus) == [row["text"] for row in [*rows, *reversed(rows)]]


@pytest.mark.parametrize("kind", ["parquet", "hf"])
def test_columns_that_are_not_read_may_change_between_parquet_files(tmp_path, kind):
    for number, x in enumerate([["y"], [1], [None], [datetime(2024, 1, 1)], [{"a": 1}], [{"b": "c"}], [[1]]]):
        table = {"x": x, "text": [f"text {number}"]} if number % 2 else {"text": [f"text {number}"], "x": x}
        pq.write_table(pa.table(table), tmp_path / f"{number}.parquet")
    pq.write_table(pa.table({"text": pa.array(["text 7"]).dictionary_encode()}), tmp_path / "7.parquet")
    pq.write_table(pa.table({"text": pa.array(["text 8"], pa.large_string())}), tmp_path / "8.parquet")
    corpus = f"hf:{tmp_path}" if kind == "hf" else f"parquet:{tmp_path}/*.parquet"
    assert texts(corpus) == [f"text {number}" for number in range(9)]


@pytest.mark.parametrize("suffix,delimiter", [("csv", ","), ("tsv", "\t")])
def test_values_of_csv_are_text_whatever_they_look_like(tmp_path, suffix, delimiter):
    values = ["1", "1.50", "NA", "2024-01-01", 'a "quoted", word', "two\nlines", "true", "007"]
    for name in ("a", "b"):
        with open(tmp_path / f"{name}.{suffix}", "w", newline="") as file:
            writer = csv.writer(file, delimiter=delimiter)
            writer.writerow(["x", "text"])
            writer.writerows([1 if name == "a" else "y", value] for value in values)
    assert texts(f"hf:{tmp_path}") == values * 2


def test_a_column_that_is_null_for_12_megabytes_and_then_text(tmp_path):
    rows = [{"text": f"{number} " + "x" * 1200, "x": None} for number in range(10_000)]
    json_lines(tmp_path / "a.jsonl", [*rows, {"text": "last", "x": "y"}])
    assert (tmp_path / "a.jsonl").stat().st_size > 12e6
    assert texts(f"jsonl:{tmp_path}/a.jsonl")[-1] == "last"


def test_bytes_that_editors_leave_do_not_matter(tmp_path):
    lines = b'\xef\xbb\xbf{"text": "one"}\r\n\r\n{"text": "two\\u2028lines"}\n{"text": "three"}'
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "b.jsonl").write_text(json.dumps([{"text": "four"}, {"text": "five"}], indent=1))
    with gzip.open(tmp_path / "c.jsonl", "wb") as file:  # without gzip's suffix
        file.write(b'{"text": "six"}\n')
    assert texts(f"jsonl:{tmp_path}/*.jsonl") == ["one", "two\u2028lines", "three", "four", "five", "six"]


GOOD = [{"text": f"text {number}"} for number in range(600)]
BAD = [
    ('{"text": null}', "has null in column 'text', where text is needed"),
    ("{}", "has no column 'text' (columns: )"),
    ('{"body": "x"}', "has no column 'text' (columns: body)"),
    ('{"text": 5}', "has the number 5 in column 'text', where text is needed"),
    ('{"text": ["a"]}', "has a list ['a'] in column 'text', where text is needed"),
    ('{"text": true}', "has true in column 'text', where text is needed"),
    ('{"text": "\\ud800"}', "has an unpaired surrogate ('\\ud800' at 0) in column 'text'"),
    ('{"text": ', "is not JSON (Expecting value: line 2 column 1 (char 10))"),
    ("[1]", "is a list [1], where an object with columns is needed"),
    ("null", "is null, where an object with columns is needed"),
]


@pytest.mark.parametrize("kind", ["jsonl", "hf"])
@pytest.mark.parametrize("line,problem", BAD)
def test_a_bad_row_among_good_ones_is_named_or_skipped_and_counted(tmp_path, kind, line, problem):
    lines = [json.dumps(row) for row in GOOD]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "b.jsonl").write_text("\n".join([*lines[:41], line, *lines[41:]]) + "\n")
    corpus = f"hf:{tmp_path}" if kind == "hf" else f"jsonl:{tmp_path}/*.jsonl"
    sentence = f"line 42 of {tmp_path}/b.jsonl {problem}"
    with pytest.raises(UserError) as caught:
        texts(corpus)
    assert str(caught.value).startswith(f"{sentence}; fix the row") and "data.bad_rows: skip" in str(caught.value)
    bad_rows = BadRows("skip")
    assert texts(corpus, bad_rows=bad_rows) == [row["text"] for row in GOOD] * 2
    assert (bad_rows.skipped, bad_rows.first) == (1, sentence)


def test_a_bad_row_of_parquet_is_named(tmp_path):
    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["a", None, "c"]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "c.parquet")
    pq.write_table(pa.table({"body": ["d"]}), tmp_path / "d.parquet")
    bad_rows = BadRows("skip")
    assert texts(f"parquet:{tmp_path}/*.parquet", bad_rows=bad_rows) == ["a", "b", "a", "c"]
    assert bad_rows.skipped == 4 and bad_rows.first.startswith(f"row 2 of {tmp_path}/b.parquet has null")
    for name, problem in {"c": "row 1 of {} has the number 1", "d": "row 1 of {} has no column 'text'"}.items():
        with pytest.raises(UserError, match=problem.format(tmp_path / f"{name}.parquet")):
            texts(f"parquet:{tmp_path}/{name}.parquet")


def test_a_bad_row_of_csv_is_named(tmp_path):
    (tmp_path / "a.csv").write_text('text,x\none,1\n"two\nlines",2\nthree\n')
    with pytest.raises(UserError, match=f"line 5 of {tmp_path}/a.csv has 1 values for 2 columns"):
        texts(f"hf:{tmp_path}")


def test_a_row_without_the_value_that_it_is_split_by_is_a_bad_row(tmp_path):
    json_lines(tmp_path / "a.jsonl", [{"text": "a", "by": "x"}, {"text": "b", "by": None}, {"text": "c"}])
    bad_rows = BadRows("skip")
    assert texts(f"jsonl:{tmp_path}/*", split_by="by", bad_rows=bad_rows) == ["a"] and bad_rows.skipped == 2
    with pytest.raises(UserError, match=f"line 2 of {tmp_path}/a.jsonl has null in column 'by' .data.split_by."):
        texts(f"jsonl:{tmp_path}/*", split_by="by")


@pytest.mark.parametrize("kind", ["jsonl", "hf"])
def test_the_one_damaged_file_of_many_is_named(tmp_path, kind):
    """This also holds for ``skip``, because the number of lost rows is unknown."""
    content = gzip.compress("".join(json.dumps({"text": f"{n:x}" * 50}) + "\n" for n in range(2000)).encode())
    for number in range(3):
        (tmp_path / f"c4.{number}.json.gz").write_bytes(content[: len(content) // 2] if number == 1 else content)
    corpus = f"hf:{tmp_path}" if kind == "hf" else f"jsonl:{tmp_path}/c4.*.json.gz"
    with pytest.raises(UserError, match=rf"^{tmp_path}/c4.1.json.gz is damaged after line \d+ .Compressed file ended"):
        texts(corpus, bad_rows=BadRows("skip"))


@pytest.mark.parametrize("position", [200, -6])
def test_a_file_with_changed_bytes_is_named(tmp_path, position):
    content = bytearray(gzip.compress(b'{"text": "one"}\n' * 5000 + bytes(range(65, 90)) * 400))
    content[position] ^= 255
    (tmp_path / "a.json.gz").write_bytes(content)
    with pytest.raises(UserError, match=f"{tmp_path}/a.json.gz"):
        texts(f"jsonl:{tmp_path}/a.json.gz", bad_rows=BadRows("skip"))


def test_a_damaged_parquet_file_is_named(tmp_path):
    pq.write_table(pa.table({"text": [f"{number}" * 100 for number in range(1000)]}), tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=f"^{tmp_path}/b.parquet cannot be read as Parquet"):
        texts(f"parquet:{tmp_path}/*.parquet")


def test_formats_that_only_datasets_reads_are_read_by_it(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("a.jsonl", '{"text": "one"}\n{"text": "two"}\n')
    assert texts(f"hf:{tmp_path}") == ["one", "two"]


@pytest.mark.parametrize("kind", ["jsonl", "hf"])
@pytest.mark.parametrize("compressed", [bz2, gzip, lzma])
def test_compressed_files_are_read_alike(tmp_path, kind, compressed):
    suffix = {bz2: "bz2", gzip: "gz", lzma: "xz"}[compressed]
    rows = "".join(
        json.dumps({"text": f"text {number}", "x": [number, str(number)][number % 2]}) + "\n" for number in range(99)
    )
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(compressed.compress(rows.encode()))
    corpus = f"hf:{tmp_path}" if kind == "hf" else f"jsonl:{path}"
    assert texts(corpus) == [f"text {number}" for number in range(99)]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=f"^{path} is damaged"):
        texts(corpus)


def test_a_file_that_is_compressed_by_zstd_is_named(tmp_path):
    (tmp_path / "a.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(20))
    with pytest.raises(UserError, match=f"{tmp_path}/a.jsonl.zst is compressed by zstd; decompress it"):
        texts(f"jsonl:{tmp_path}/a.jsonl.zst")


def test_a_text_may_be_what_it_is_split_by(tmp_path):
    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "a.parquet")
    assert texts(f"parquet:{tmp_path}/a.parquet", split_by="text") == ["a", "b"]


def test_options_in_the_card_of_a_data_set_hold(tmp_path):
    (tmp_path / "a.csv").write_text("one;1\ntwo;2\n", encoding="utf-8")
    config = "configs:\n- config_name: default\n  data_files: a.csv\n  sep: ';'\n  names: [text, number]\n"
    (tmp_path / "README.md").write_text(f"---\n{config}---\n")
    assert texts(f"hf:{tmp_path}") == ["one", "two"]
    (tmp_path / "README.md").write_text(f"---\n{config.replace('text, number', 'body, number')}---\n")
    with pytest.raises(UserError, match=f"row 1 of hf:{tmp_path} has no column 'text' .columns: body, number."):
        texts(f"hf:{tmp_path}")


def test_the_rows_are_those_that_datasets_gives(tmp_path):
    rows = [{"text": f"text {number} ü\n", "more": number} for number in range(2500)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    json_lines(tmp_path / "a.jsonl", rows)
    for kind, builder in {"parquet": "parquet", "jsonl": "json"}.items():
        theirs = datasets.load_dataset(
            builder, data_files=f"{tmp_path}/a.{kind}", split="train", cache_dir=tmp_path / "cache"
        )
        assert texts(f"{kind}:{tmp_path}/a.{kind}") == list(theirs["text"])
