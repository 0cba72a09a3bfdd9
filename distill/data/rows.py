"""Rows of files, read one at a time: JSON lines, Parquet, CSV, and lines of text, plain or compressed.

Only the required columns are checked, and each value keeps its own type. So whether a row can be read does not depend
on other columns, rows or files. ``datasets`` infers one schema for a whole corpus, which real files often violate.
"""

import bz2
import codecs
import contextlib
import csv
import gzip
import io
import itertools
import json
import lzma
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from distill.errors import UserError

# First bytes of a compressed file -> function that opens it. The names of such files vary too much.
_COMPRESSED: dict[bytes, Callable[[Any], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_ZSTD = b"\x28\xb5\x2f\xfd"
_PARQUET_ROWS = 1000  # rows in memory at a time
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)


class Row(NamedTuple):
    """One row of a file: its place, and its values or its problem."""

    place: str  # "line 3 of FILE" or "row 3 of FILE"
    values: dict[str, Any]  # has all required columns if there is no problem
    problem: str = ""  # the rest of a sentence that begins with the place


Reader = Callable[[io.BufferedReader, str, list[str]], Iterator[Row]]


def read_rows(path: str, reader: Reader, columns: list[str]) -> Iterator[Row]:
    """Yield the rows of one file, in order.

    Args:
        path: a local file, or a URL that datasets opens (``hf://...``).
        reader: ``json_rows``, ``parquet_rows``, ``csv_rows`` or ``text_rows``.
        columns: required in every row; a reader may return more.

    Raises:
        UserError: the file cannot be opened, or is damaged.
    """
    last = None
    try:
        with contextlib.closing(_open(path)) as file:
            for row in reader(file, path, columns):
                last = row.place
                yield row
    except _DAMAGED as error:
        after = "" if last is None else f" after {last.partition(' of ')[0]}"
        raise UserError(f"{path} is damaged{after} ({error}); copy it again, or omit it") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def json_rows(file: io.BufferedReader, path: str, columns: list[str]) -> Iterator[Row]:
    """Rows of JSON: one object per line, or one array of objects."""
    text = _decompressed(file, path)
    if text.peek(1)[:1] == b"[":
        yield from _array_rows(text, path, columns)
        return
    for number, line in enumerate(text, 1):
        place, line = f"line {number} of {path}", line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        try:
            if line.strip():
                yield _json_row(place, json.loads(line.decode("utf-8")), columns)
        except UnicodeDecodeError as error:
            yield Row(place, {}, f"is not UTF-8 text (byte {error.start})")
        except (ValueError, RecursionError) as error:
            yield Row(place, {}, f"is not JSON ({error})")


def _array_rows(text: io.BufferedReader, path: str, columns: list[str]) -> Iterator[Row]:
    try:
        values = json.loads(text.read().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} begins with [ but is not a JSON array ({error}); fix it, or copy it again") from error
    for number, value in enumerate(values, 1):
        yield _json_row(f"row {number} of {path}", value, columns)


def _json_row(place: str, value: Any, columns: list[str]) -> Row:
    if not isinstance(value, dict):
        return Row(place, {}, f"is {describe(value)}, where an object with columns is needed")
    return Row(place, value, _missing(columns, value))


def parquet_rows(file: io.BufferedReader, path: str, columns: list[str]) -> Iterator[Row]:
    """The rows of a Parquet file."""
    import pyarrow as pa  # slow to import, and few corpora need it
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
        names = table.schema_arrow.names
        if problem := _missing(columns, names):
            yield from (Row(f"row {n} of {path}", {}, problem) for n in range(1, table.metadata.num_rows + 1))
            return
        batches = table.iter_batches(_PARQUET_ROWS, columns=columns)
        rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
        yield from (Row(f"row {number} of {path}", values) for number, values in enumerate(rows, 1))
    except (pa.ArrowException, OSError) as error:
        cause = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be read as Parquet ({cause}); copy it again, or omit it") from error


def csv_rows(file: io.BufferedReader, path: str, columns: list[str], delimiter: str = ",") -> Iterator[Row]:
    """Rows of CSV with a header line; all values are strings. The place of a row is its last line."""
    csv.field_size_limit(sys.maxsize)  # a text may be long
    reader = csv.reader(
        io.TextIOWrapper(_decompressed(file, path), "utf-8-sig", newline=""), delimiter=delimiter, strict=True
    )
    try:
        names = next(reader, [])
        problem = _missing(columns, names)
        for values in filter(None, reader):
            place = f"line {reader.line_num} of {path}"
            if len(values) != len(names):
                yield Row(place, {}, f"has {len(values)} values for {len(names)} columns")
            else:
                yield Row(place, dict(zip(names, values, strict=True)), problem)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason}); convert it, or omit it") from error
    except csv.Error as error:
        raise UserError(f"line {reader.line_num} of {path} is not CSV ({error}); fix it, or omit it") from error


def text_rows(file: io.BufferedReader, path: str, columns: list[str]) -> Iterator[Row]:
    """One row per line, with the column ``text``."""
    problem = _missing(columns, ["text"])
    for number, line in enumerate(_decompressed(file, path), 1):
        place = f"line {number} of {path}"
        try:
            yield Row(place, {"text": line.decode("utf-8").rstrip("\r\n")}, problem)
        except UnicodeDecodeError as error:
            yield Row(place, {}, f"is not UTF-8 text (byte {error.start})")


def describe(value: Any) -> str:
    """A description of a value for messages: its kind, and its first characters."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    kinds = {int: "the number", float: "the number", str: "the text", list: "a list", dict: "an object"}
    kind = kinds.get(type(value), f"a {type(value).__name__}")
    shown = repr(value)
    return f"{kind} {shown}" if len(shown) <= 40 else f"{kind} {shown[:40]}..."


def _missing(columns: Iterable[str], present: Iterable[str]) -> str:
    known = list(present)
    absent = [name for name in columns if name not in known]
    return f"has no column {absent[0]!r} (columns: {', '.join(map(str, known))[:200]})" if absent else ""


def _open(path: str) -> io.BufferedReader:
    if "://" not in path:
        return open(path, "rb")
    from datasets.utils.file_utils import xopen  # slow to import; it opens hub URLs and retries broken connections

    file = xopen(path, "rb")
    return file if isinstance(file, io.BufferedReader) else io.BufferedReader(file)


def _decompressed(file: io.BufferedReader, path: str) -> io.BufferedReader:
    first = file.peek(8)[:8]
    if first.startswith(_ZSTD):
        raise UserError(f"{path} is compressed by zstd; decompress it, or compress it by gzip")
    for begins, opened in _COMPRESSED.items():
        if first.startswith(begins):
            return io.BufferedReader(opened(file))
    return file
