"""Rows of each kind of source, against the libraries that the data comes from."""

import ast
import csv
import gzip
import importlib
import inspect
import json
from datetime import date

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from babel import Locale
from babel.dates import format_date
from babel.messages.pofile import read_po

from distill.errors import UserError
from distill.tasks import embedded
from distill.tasks.sources import KINDS, source_files, source_rows

ROWS = [{"source": f"one {number}", "target": f"zwei\n\"{number}\", 'ü'\t"} for number in range(5)]


def write_table(path, delimiter):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["source", "target"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


def write(directory, kind):
    """Write the rows to two files; returns the source."""
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    for name in ("b", "a"):
        path = directory / name
        if kind in ("csv", "tsv"):
            write_table(path.with_suffix(f".{kind}"), "," if kind == "csv" else "\t")
        elif kind == "parquet":
            pq.write_table(pa.Table.from_pylist(ROWS), path.with_suffix(".parquet"))
        elif kind == "gzip":
            path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(lines))
        else:
            path.with_suffix(".jsonl").write_bytes(lines)
    return {"gzip": f"jsonl:{directory}/*.gz", "hf": f"hf:{directory}"}.get(kind, f"{kind}:{directory}/*")


@pytest.mark.parametrize("kind", ["jsonl", "gzip", "csv", "tsv", "parquet", "hf"])
def test_rows_of_files_come_in_order_with_their_places(tmp_path, kind):
    source = write(tmp_path, kind)
    found = list(source_rows(source, ["source", "target"]))
    assert [row.values for row in found] == ROWS * 2
    assert ["/a." in row.place for row in found] == [True] * 5 + [False] * 5
    names = [path.name for path in source_files(source)]
    assert names == sorted(names) and len(names) == (0 if kind == "hf" else 2)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "hf"])
def test_a_column_that_is_missing_is_named_with_file_and_row(tmp_path, kind):
    rows = list(source_rows(write(tmp_path, kind), ["source", "label"]))
    assert len(rows) == 10 and all(row.problem.startswith("has no column 'label' (columns: source, t") for row in rows)


@pytest.mark.parametrize("source", ["text:a", "jsonl", "jsonl:", "hf:", "babel:nothing", "", "stdlib", "names"])
def test_an_unknown_kind_of_source_is_refused(source):
    with pytest.raises(UserError) as caught:
        source_files(source, "task.unlabelled")
    assert str(caught.value) == f"task.unlabelled is {source!r}; use one of {', '.join(KINDS)}"


def test_a_pattern_that_matches_no_file_is_refused(tmp_path):
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(UserError, match="^task.examples 'jsonl:.*/\\*.jsonl' matches no file; check the path"):
        source_files(f"jsonl:{tmp_path}/*.jsonl")


def test_docstrings_are_those_of_the_functions():
    names = ["textwrap", "bisect", "shlex", "string", "glob", "fnmatch"]
    modules = [importlib.import_module(name) for name in names]
    files = [path for path in source_files("stdlib:docstrings") if str(path) in [one.__file__ for one in modules]]
    assert len(files) == len(names)
    rows = list(embedded.EMBEDDED["stdlib:docstrings"].rows(files))
    found = {row.place: row.values for row in rows}
    compared = 0
    for module in modules:
        for name, function in inspect.getmembers(module, inspect.isfunction):
            summary = inspect.getdoc(function)
            if function.__module__ != module.__name__ or not summary:
                continue
            values = found[f"line {function.__code__.co_firstlineno} of {module.__file__}"]
            assert (values["module"], values["name"]) == (module.__name__, name)
            assert values["summary"] == summary.partition("\n")[0].strip()
            [theirs] = ast.parse(inspect.getsource(function)).body
            theirs.body, theirs.decorator_list = theirs.body[1:], []
            assert ast.dump(ast.parse(values["source"]).body[0]) == ast.dump(theirs)
            compared += 1
    assert compared > 10 and len(rows) > 30


def test_a_form_feed_does_not_shift_the_lines_of_a_docstring(tmp_path):
    path = tmp_path / "module.py"
    path.write_text('\f\nimport os\n\f\n\ndef sign(x):\n    """The sign."""\n    return x > 0\n')
    [row] = embedded.EMBEDDED["stdlib:docstrings"].rows([path])
    assert row.values["source"] == "def sign(x):\n    return x > 0"


def test_names_are_those_of_cldr():
    rows = list(source_rows("babel:names", ["locale", "english", "name"]))
    assert len(rows) > 100_000
    locales = [row.values["locale"] for row in rows]
    assert locales == sorted(locales) and not any(name.partition("_")[0] == "en" for name in locales)
    german, english = Locale.parse("de"), Locale.parse("en")
    of_kind = {"languages": "languages", "territories": "territories", "scripts": "scripts", "currency": "currencies"}
    mine = [row.values for row in rows if row.values["locale"] == "de"]
    for kind, attribute in of_kind.items():
        theirs, names = getattr(german, attribute), getattr(english, attribute)
        expected = {(names[code], name) for code, name in theirs.items() if code in names}
        found = {(one["english"], one["name"]) for one in mine if one["kind"] == kind}
        assert found <= expected and len(found) > 0.9 * len(expected)
    assert ("France", "Frankreich") in {(one["english"], one["name"]) for one in mine}
    # A locale with a territory has only the names in which it differs from its language.
    swiss = [row.values for row in rows if row.values["locale"] == "de_CH"]
    assert 0 < len(swiss) < len(mine) / 10


def test_dates_are_those_of_babel():
    rows = [row.values for row in source_rows("babel:dates", ["locale", "date", "written"])]
    locales, dates = {row["locale"] for row in rows}, sorted({row["date"] for row in rows})
    assert len(rows) == len(locales) * len(dates) == len({(row["locale"], row["date"]) for row in rows})
    assert len(locales) > 250 and len(dates) == 300 and dates[0] >= "2000-01-01" and dates[-1] < "2020-01-01"
    assert all(20 <= sum(day[5:7] == f"{month:02}" for day in dates) <= 30 for month in range(1, 13))
    # So many dates of each year that a split cannot hold out all of them.
    assert all(14 <= sum(day.startswith(str(year)) for day in dates) <= 16 for year in range(2000, 2020))
    for row in rows[:: len(rows) // 500]:
        assert row["written"] == format_date(date.fromisoformat(row["date"]), "long", locale=row["locale"])
    # A locale with a territory that inherits its months or format is left out, and so is the root.
    assert {"de", "fr", "sr_Latn"} <= locales and not locales & {"de_CH", "root", "fr_LU"}


def test_messages_are_those_of_the_catalogues():
    files = [path for path in source_files("django:messages") if path.parts[-3] == "de"]
    rows = [row.values for row in embedded.EMBEDDED["django:messages"].rows(files)]
    expected = []
    for path in files:
        with open(path.with_suffix(".po"), "rb") as file:
            for message in read_po(file):
                source, target = [one[0] if isinstance(one, tuple) else one for one in (message.id, message.string)]
                if source and target.strip() and not message.fuzzy:
                    expected.append(("de", source, target))
    assert len(expected) > 500
    assert sorted((row["language"], row["source"], row["message"]) for row in rows) == sorted(expected)


@pytest.mark.parametrize(
    "source,package", [("babel:names", "babel"), ("babel:dates", "babel"), ("django:messages", "django")]
)
def test_a_package_that_is_missing_is_named_with_the_command_that_installs_it(source, package, monkeypatch):
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as caught:
        list(source_rows(source, []))
    assert str(caught.value) == (f"{source} needs the package {package}; install it: pip install {package}")


def test_a_column_that_an_embedded_source_has_not_is_named():
    with pytest.raises(UserError, match="^django:messages has no column 'text' .columns: language, source, message"):
        source_rows("django:messages", ["source", "text"])
