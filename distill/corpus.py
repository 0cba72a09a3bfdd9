"""Documents of a corpus, their split by hash, and the digest of their bytes."""

import glob
import hashlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from distill.errors import UserError

KINDS = ("stdlib", "text:GLOB", "jsonl:GLOB", "parquet:GLOB", "hf:NAME[:CONFIG]")
_NOT_STDLIB = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "_bundled"}


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


def read_documents(corpus: str, text_column: str = "text") -> Iterator[str]:
    """The documents of ``corpus`` in a fixed order, empty ones left out.

    A file of ``text:`` is one document; a row of ``jsonl:`` (gzip too), ``parquet:`` or ``hf:`` is one.

    Raises:
        UserError: a file that cannot be read or is not UTF-8, a missing column, a data set that is not found.
    """
    files = corpus_files(corpus)
    kind, _, name = corpus.partition(":")
    texts = _read_files(files) if kind in ("stdlib", "text") else _read_rows(corpus, kind, name, files, text_column)
    return (text for text in texts if text.strip())


def split_of(text: str, test: float, validation: float = 0.0) -> str:
    """``train``, ``test`` or ``validation``: by a hash of the document's own text, so equal ones share a part.

    Args:
        test, validation: fractions of the documents, together less than 1.
    """
    first = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8]
    place = int.from_bytes(first, "big") / 2**64
    if place < test:
        return "test"
    return "validation" if place < test + validation else "train"


class Digest:
    """A running SHA-256 over documents, cut to 128 bits (MLflow takes at most 36 characters)."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, text: str) -> None:
        data = text.encode("utf-8", "surrogatepass")
        self._hash.update(len(data).to_bytes(8, "big") + data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()[:32]


def _stdlib_files() -> list[Path]:
    found = []
    for directory, folders, names in os.walk(sysconfig.get_paths()["stdlib"]):
        folders[:] = set(folders) - _NOT_STDLIB  # installed packages are many times as many files
        found += [Path(directory, name) for name in set(names) - _NOT_STDLIB if name.endswith((".py", ".txt", ".rst"))]
    return sorted(found)


def _read_files(files: list[Path]) -> Iterator[str]:
    for path in files:
        try:
            yield path.read_bytes().decode("utf-8")  # read_text would change line ends
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text (byte {error.start}); convert it or leave it out") from error
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _read_rows(corpus: str, kind: str, name: str, files: list[Path], text_column: str) -> Iterator[str]:
    import datasets  # slow to import, and only some corpora need it

    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it would print a traceback beside our sentence
    try:
        if kind == "hf":
            dataset, _, config = name.partition(":")
            rows = datasets.load_dataset(dataset, config or None, split="train", streaming=True)
        else:
            builder = {"jsonl": "json", "parquet": "parquet"}[kind]
            rows = datasets.load_dataset(builder, data_files=list(map(str, files)), split="train", streaming=True)
        for row in rows:
            if not isinstance(row.get(text_column), str):
                raise UserError(
                    f"{corpus} has no text in column {text_column!r} (columns: {', '.join(row)}); set data.text_column"
                )
            yield row[text_column]
    except UserError:
        raise
    except Exception as error:  # datasets raises many kinds; each means that this corpus cannot be read
        cause = str(error.__cause__ or error).strip().split("\n")[0]
        raise UserError(f"data.corpus {corpus!r} cannot be read: {cause}") from error
