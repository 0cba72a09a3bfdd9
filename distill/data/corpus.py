"""Documents of a corpus, their split by hash, and the digest of their bytes."""

import glob
import hashlib
import itertools
import os
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from distill.data.hub_rows import hub_rows
from distill.data.rows import Row, describe, json_rows, parquet_rows, read_rows
from distill.errors import UserError

KINDS = ("stdlib", "text:GLOB", "jsonl:GLOB", "parquet:GLOB", "hf:NAME[@REVISION][:CONFIG]")
_CURE = (
    "fix the row, name another column in data.text_column or data.split_by, or skip such rows with data.bad_rows: skip"
)
_NOT_STDLIB = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "_bundled"}


@dataclass(frozen=True)
class Document:
    """A text of a corpus, and the key that decides its split."""

    text: str
    group: str | None = None  # the value of data.split_by; None if the text itself decides the split

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the text."""
        return _sha256(self.text)

    @property
    def key(self) -> bytes:
        """SHA-256, equal for documents that must be in the same split: equal texts, or all texts of a group."""
        return self.digest if self.group is None else _sha256(self.group)


def corpus_files(corpus: str) -> list[Path]:
    """The local files of ``corpus`` in a fixed order; empty for a hub data set.

    Raises:
        UserError: an unknown kind of corpus, or a pattern that matches no file.
    """
    kind, _, pattern = corpus.partition(":")
    if corpus == "stdlib":
        return _stdlib_files()
    if kind == "hf" and pattern:
        return []
    if kind not in ("text", "jsonl", "parquet") or not pattern:
        raise UserError(f"data.corpus is {corpus!r}; use one of {', '.join(KINDS)}")
    files = sorted(Path(name) for name in glob.glob(pattern, recursive=True) if Path(name).is_file())
    if not files:
        raise UserError(f"data.corpus {corpus!r} matches no file; check the path and the pattern")
    return files


class BadRows:
    """Refuses bad rows, or skips and counts them; see ``data.bad_rows``."""

    def __init__(self, choice: Literal["refuse", "skip"] = "refuse", cure: str = _CURE):
        """``cure`` is the end of the message about a bad row."""
        self._refuse, self._cure = choice == "refuse", cure
        self.skipped, self.first = 0, ""

    def add(self, sentence: str) -> None:
        """Count a bad row. ``sentence`` has its place and the problem.

        Raises:
            UserError: bad rows are refused.
        """
        if self._refuse:
            raise UserError(f"{sentence}; {self._cure}")
        self.first = self.first or sentence
        self.skipped += 1

    def check(self, good: int) -> None:
        """Raise UserError if all rows were skipped; ``good`` is the number of rows that were not."""
        if self.skipped and not good:
            raise UserError(f"all {self.skipped:,} rows are bad; the first: {self.first}; use another corpus")


def read_documents(
    corpus: str,
    text_column: str = "text",
    split_by: str | None = None,
    revision: str | None = None,
    bad_rows: BadRows | None = None,
) -> Iterator[Document]:
    """Yield the documents of ``corpus`` in a fixed order, without empty ones.

    Each file of ``text:`` is a document, and so is each row of ``jsonl:`` (also compressed), ``parquet:`` or ``hf:``.

    Args:
        corpus: one of KINDS.
        text_column: the column of rows that has the text.
        split_by: None, ``directory`` (of files), or a column (of rows). It becomes the documents' group.
        revision: of a data set on the hub.
        bad_rows: handles rows without text or without a value of ``split_by``; None refuses them.

    Raises:
        UserError: a file cannot be read or is not UTF-8, a row is bad, a data set is not found, or the corpus does not
            have ``split_by``.
    """
    files = corpus_files(corpus)
    kind = corpus.partition(":")[0]
    if kind in ("stdlib", "text"):
        if split_by not in (None, "directory"):
            raise UserError(f"data.split_by is {split_by!r}, but {corpus} has files; use directory, or null")
        root = Path(sysconfig.get_paths()["stdlib"]) if kind == "stdlib" else _above(corpus.removeprefix("text:"))
        documents = _read_files(files, root if split_by else None)
    else:
        columns = [text_column] if split_by is None else [text_column, split_by]
        if kind == "hf":
            rows = hub_rows(corpus, revision, columns)
        else:
            reader = {"jsonl": json_rows, "parquet": parquet_rows}[kind]
            rows = itertools.chain.from_iterable(read_rows(str(path), reader, columns) for path in files)
        documents = _documents_of_rows(rows, text_column, split_by, bad_rows or BadRows())
    return (document for document in documents if document.text.strip())


def split_of(key: bytes, test: float, validation: float = 0.0) -> str:
    """The split of a document: ``train``, ``test`` or ``validation``.

    Args:
        key: ``Document.key``; documents with equal keys are in the same split.
        test, validation: fractions of the documents, together less than 1.
    """
    place = int.from_bytes(key[:8], "big") / 2**64
    if place < test:
        return "test"
    return "validation" if place < test + validation else "train"


class Digest:
    """A running SHA-256 over the digests of documents, cut to 128 bits (MLflow takes at most 36 characters)."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, document: Document) -> None:
        self._hash.update(document.digest)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()[:32]


def _stdlib_files() -> list[Path]:
    found = []
    for directory, folders, names in os.walk(sysconfig.get_paths()["stdlib"]):
        folders[:] = set(folders) - _NOT_STDLIB  # without installed packages, which have many times as many files
        found += [Path(directory, name) for name in set(names) - _NOT_STDLIB if name.endswith((".py", ".txt", ".rst"))]
    return sorted(found)


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _above(pattern: str) -> Path:
    """The directory above the first wildcard of a glob. Groups are relative to it, wherever it is."""
    parts = list(itertools.takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts))
    return Path(*parts) if len(parts) < len(Path(pattern).parts) else Path(pattern).parent


def _read_files(files: list[Path], group_below: Path | None) -> Iterator[Document]:
    """Read files as documents. If ``group_below`` is given, a file's group is its directory relative to that."""
    for path in files:
        group = None if group_below is None else path.relative_to(group_below).parent.as_posix()
        try:
            text = path.read_bytes().decode("utf-8")  # read_text would convert line ends
            yield Document(text, group)
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text (byte {error.start}); convert it or leave it out") from error
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _documents_of_rows(
    rows: Iterable[Row], text_column: str, split_by: str | None, bad_rows: BadRows
) -> Iterator[Document]:
    for row in rows:
        if problem := row.problem or _problem(row.values, text_column, split_by):
            bad_rows.add(f"{row.place} {problem}")
        else:
            yield Document(row.values[text_column], None if split_by is None else str(row.values[split_by]))


def _problem(values: dict[str, Any], text_column: str, split_by: str | None) -> str:
    """The problem of a row that has all columns; empty if there is none."""
    if not isinstance(text := values[text_column], str):
        return f"has {describe(text)} in column {text_column!r}, where text is needed"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"has an unpaired surrogate ({text[error.start]!a} at {error.start}) in column {text_column!r}"
    if split_by is not None and type(group := values[split_by]) not in (str, int):
        return f"has {describe(group)} in column {split_by!r} (data.split_by), where text or a whole number is needed"
    return ""
