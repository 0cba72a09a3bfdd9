"""Corpora that are read row by row: no document is lost or repeated, and a kill does not change the data."""

import contextlib
import gzip
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from distill.config import DataConfig
from distill.data import prepare, tokenizer
from distill.data.corpus import Document, read_documents, split_of
from distill.data.prepare import prepare_data
from distill.data.tokenizer import encode_texts
from tests.conftest import ROOT

_DIES = """
import os, signal, sys
from pathlib import Path
from distill.data import prepare, tokenizer
from distill.config import DataConfig
write, calls = prepare._write_tokens, []
def write_some(*arguments):
    calls.append(write(*arguments))
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return calls[-1]
prepare._write_tokens = write_some
prepare.prepare_data(DataConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.fixture(params=["jsonl", "hf"])
def corpus(request, tmp_path) -> DataConfig:
    """1,200 documents in two files, one of them compressed; some are empty, and some are duplicates."""
    words = (ROOT / "LICENSE").read_text().split()
    texts = [f"{number % 1000} " + " ".join(words[number : number + 20]) for number in range(1200)]
    texts[100] = texts[700] = " "
    directory = tmp_path / "rows"
    directory.mkdir()
    with open(directory / "a.jsonl", "w") as one, gzip.open(directory / "b.jsonl.gz", "wt") as two:
        for number, text in enumerate(texts):
            (one if number < 500 else two).write(json.dumps({"text": text}) + "\n")
    name = f"jsonl:{directory}/*" if request.param == "jsonl" else f"hf:{directory}"
    return DataConfig(corpus=name, vocabulary=400, test_fraction=0.2, test_examples=4)


def files(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_every_document_is_prepared_once_and_in_order(corpus, tmp_path):
    data = prepare_data(corpus, tmp_path / "data")
    rows = [json.loads(line)["text"] for line in (tmp_path / "rows" / "a.jsonl").read_text().splitlines()]
    with gzip.open(tmp_path / "rows" / "b.jsonl.gz", "rt") as file:
        rows += [json.loads(line)["text"] for line in file]
    texts = [text for text in rows if text.strip()]
    assert [document.text for document in read_documents(corpus.corpus)] == texts and len(texts) == 1198
    for part in ("train", "test"):
        own = [text for text in texts if split_of(Document(text).key, 0.2) == part]
        assert data.tokens(part).tolist() == [token for ids in encode_texts(data.tokenizer, own) for token in ids]
    assert sum(part.documents for part in data.parts.values()) == len(texts)


def test_new_texts_are_tokenised_beside_the_work_of_the_caller(corpus, tmp_path, monkeypatch):
    log = []

    @contextlib.contextmanager
    def beside():
        log.append("begin")
        yield
        log.append("end")

    for module, name in ((tokenizer, "train_on_split"), (prepare, "_write_tokens")):
        done = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *values, name=name, done=done: log.append(name) or done(*values))
    for _ in range(2):  # the second call reuses the data
        prepare_data(corpus, tmp_path / "data", beside=beside)
    assert log == ["begin", "train_on_split", *["_write_tokens"] * 5, "end"]


def test_a_preparation_that_was_killed_ends_with_the_same_files(corpus, tmp_path):
    whole = prepare_data(corpus, tmp_path / "whole")
    command = [sys.executable, "-c", _DIES, corpus.model_dump_json(), str(tmp_path / "killed")]
    assert subprocess.run(command, cwd=ROOT).returncode == -signal.SIGKILL
    assert not list((tmp_path / "killed").glob("*/data.json"))
    again = prepare_data(corpus, tmp_path / "killed")
    assert files(Path(again.directory)) == files(Path(whole.directory))
    assert [path.name for path in (tmp_path / "killed").iterdir()] == [Path(again.directory).name]
