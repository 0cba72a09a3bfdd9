"""Rows of a task's source, one at a time."""

import glob
import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from distill.data.rows import Reader, Row, csv_rows, json_rows, parquet_rows, read_rows
from distill.errors import UserError
from distill.tasks.embedded import EMBEDDED

KINDS = ("jsonl:GLOB", "csv:GLOB", "tsv:GLOB", "parquet:GLOB", "hf:NAME[@REVISION][:CONFIG]", *EMBEDDED)
_READERS: dict[str, Reader] = {
    "jsonl": json_rows,
    "csv": csv_rows,
    "tsv": partial(csv_rows, delimiter="\t"),
    "parquet": parquet_rows,
}


def source_files(source: str, key: str = "task.examples") -> list[Path]:
    """The local files of ``source`` in a fixed order; for an embedded source, those that its rows depend on.

    Args:
        source: one of KINDS.
        key: of the config, for messages.

    Raises:
        UserError: an unknown kind of source, a pattern that matches no file, or a package that is not installed.
    """
    kind, _, pattern = source.partition(":")
    if source in EMBEDDED:
        return EMBEDDED[source].files()
    if kind == "hf" and pattern:
        return []
    if kind not in _READERS or not pattern:
        raise UserError(f"{key} is {source!r}; use one of {', '.join(KINDS)}")
    files = sorted(Path(name) for name in glob.glob(pattern, recursive=True) if Path(name).is_file())
    if not files:
        raise UserError(f"{key} {source!r} matches no file; check the path and the pattern")
    return files


def source_rows(source: str, columns: list[str], revision: str | None = None) -> Iterator[Row]:
    """Yield the rows of ``source`` in a fixed order.

    Args:
        source: one of KINDS.
        columns: required in every row; a row may have more.
        revision: of a data set on the hub.

    Raises:
        UserError: a file or data set cannot be read.
    """
    kind = source.partition(":")[0]
    if source in EMBEDDED:
        files = source_files(source)
        rows = EMBEDDED[source].rows(files)
        first = next(rows, None)
        if first and (absent := [name for name in columns if name not in first.values]):
            raise UserError(f"{source} has no column {absent[0]!r} (columns: {', '.join(first.values)})")
        return itertools.chain([] if first is None else [first], rows)
    if kind == "hf":
        from distill.data.hub_rows import hub_rows

        return hub_rows(source, revision, columns, "task.examples")
    paths = source_files(source)
    return itertools.chain.from_iterable(read_rows(str(path), _READERS[kind], columns) for path in paths)
