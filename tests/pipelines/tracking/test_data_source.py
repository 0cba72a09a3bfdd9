"""MLflow's own ``mlflow.data.get_source`` finds a corpus from its recorded source."""

import glob
import json
import sysconfig
from pathlib import Path

import mlflow.data
import pytest
from mlflow.data.dataset_source import DatasetSource
from mlflow.entities import Dataset, DatasetInput

from distill.data.corpus import corpus_files
from pipelines.tracking.data_source import mlflow_source
from tests.hub import python

_LOAD = """
import sys, mlflow.data, pathlib
from mlflow.entities import Dataset, DatasetInput
from pipelines.tracking.data_source import mlflow_source
source = mlflow_source(sys.argv[1], sys.argv[2] or None, pathlib.Path())
print(*mlflow.data.get_source(DatasetInput(Dataset("corpus", "digest", *source))).load()["text"])
"""
COMMIT = "0123456789" * 4


def source_of(corpus: str, revision: str | None = None, prepared: Path = Path("prepared")) -> DatasetSource:
    kind, text = mlflow_source(corpus, revision, prepared)
    assert json.loads(text)["corpus"] == corpus
    source = mlflow.data.get_source(DatasetInput(Dataset("corpus", "digest", kind, text)))
    assert source._get_source_type() == kind
    return source


@pytest.fixture(params=["plain", "with space", "a#b", "a?b", "a%20b", "ü@b"])
def directory(request, tmp_path, monkeypatch) -> Path:
    """The current directory, with a name whose characters have another meaning in a URI."""
    path = tmp_path / request.param
    for name in ("one.txt", "below/two.txt", "below/deep/three.txt", "rows.jsonl", "rows.parquet"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(name)
    monkeypatch.chdir(path)
    return path


@pytest.mark.parametrize(
    "corpus,place",
    [
        ("text:one.txt", "one.txt"),
        ("text:*.txt", "one.txt"),
        ("text:**/*.txt", ""),
        ("text:below/**/*.txt", "below"),
        ("text:*/deep/*.txt", "below/deep/three.txt"),
        ("jsonl:rows.jsonl", "rows.jsonl"),
        ("parquet:./*.parquet", "rows.parquet"),
        ("text:**/t*.txt", "below"),
    ],
)
def test_local_files_are_found_again(directory, corpus, place, monkeypatch):
    """From any directory, because the recorded path is absolute."""
    source = source_of(corpus)
    files = [path.absolute() for path in corpus_files(corpus)]
    monkeypatch.chdir("/")
    found = Path(source.load())
    assert found == directory / place
    assert all(file == found or file.is_relative_to(found) for file in files)


@pytest.mark.parametrize(
    "name,readable",
    [
        *((name, True) for name in ("sp ace", "a?b", "a%b", "a&b;c+d", "a:b", "é日本", "back\\slash", "-x", "x ", "~")),
        *((name, False) for name in ("a#b", "a%20b", "a%23b", "%2e%2e", "new\nline", "file:x")),
    ],
)
def test_the_source_of_a_file_that_mlflow_cannot_read_is_its_directory(name, readable, tmp_path):
    directory = tmp_path / "with space" / "a%20b#c"
    directory.mkdir(parents=True)
    (directory / name).write_text("x")
    found = Path(source_of(f"text:{glob.escape(str(directory / name))}").load())
    assert found == (directory / name if readable else directory)


def test_the_standard_library_is_found_again():
    assert Path(source_of("stdlib").load()) == Path(sysconfig.get_paths()["stdlib"])


@pytest.mark.parametrize(
    "corpus,revision,expected",
    [
        ("hf:some/texts", COMMIT, ("some/texts", None, COMMIT)),
        ("hf:some/texts:en", COMMIT, ("some/texts", "en", COMMIT)),
        ("hf:some/texts@v1:en", COMMIT, ("some/texts", "en", COMMIT)),
        ("hf:some/texts@v1", None, ("some/texts", None, "v1")),
    ],
)
def test_a_data_set_of_the_hub_has_its_name_config_and_revision(corpus, revision, expected):
    source = source_of(corpus, revision)
    assert (source.path, source.config_name, source.revision) == expected
    assert (source.split, source.data_dir, source.data_files) == ("train", None, None)


def test_a_data_set_of_the_hub_is_read_at_its_revision(hub):
    data = hub.dataset("some/texts")
    first = data.commit({"en.jsonl": '{"text": "old"}\n'})
    data.commit({"en.jsonl": '{"text": "new"}\n'})
    for corpus in ("hf:some/texts", "hf:some/texts@main", "hf:some/texts:default"):
        assert python(_LOAD, corpus, first, **hub.environment).splitlines()[-1] == "old", corpus


def test_a_data_set_in_a_directory_is_found_again(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.jsonl").write_text('{"text": "one"}\n')
    monkeypatch.chdir(tmp_path)
    source = source_of("hf:set:default")
    assert (source.path, source.config_name, source.revision) == (str(tmp_path / "set"), "default", None)


def test_the_source_of_a_deleted_corpus_is_the_prepared_data(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    assert Path(source_of("text:gone/*.txt", prepared=Path("data")).load()) == tmp_path / "data"
