"""Rows as pairs of texts, with the key that decides their split."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from distill.data.corpus import BadRows
from distill.data.rows import Row, describe
from distill.tasks.config import SourceConfig, source_columns
from distill.tasks.sources import source_rows
from distill.tasks.template import render

_CURE = "fix the row, name other columns in the section task, or skip such rows with data.bad_rows: skip"


@dataclass(frozen=True)
class Pair:
    """An input, its target, and the facts of its row."""

    input: str
    target: str  # empty if the source has no targets
    split_by: str  # pairs with an equal value are in the same split, and count as one document
    group: str | None
    columns: dict[str, str]  # the columns of the template of the input, with their values
    source: int  # index of the source in a mixture

    @property
    def text(self) -> str:
        """Both texts, for the training of a tokenizer."""
        return f"{self.input}\n{self.target}"

    @property
    def key(self) -> bytes:
        """SHA-256 that decides the split."""
        return hashlib.sha256(self.split_by.encode("utf-8", "surrogatepass")).digest()

    @property
    def digest(self) -> bytes:
        """SHA-256 of the texts."""
        return hashlib.sha256(f"{self.input}\0{self.target}".encode("utf-8", "surrogatepass")).digest()


def bad_pairs(choice: Any) -> BadRows:
    """A handler of rows that are not pairs; ``choice`` is the value of ``data.bad_rows``."""
    return BadRows(choice, _CURE)


def read_pairs(
    sources: list[SourceConfig], revisions: list[str | None], bad_rows: BadRows, *, with_target: bool = True
) -> Iterator[Pair]:
    """Yield the pairs of all sources, in order.

    Args:
        sources: from ``TaskConfig.sources``.
        revisions: of each source that is on the hub.
        bad_rows: handles rows without a column, with a value that is neither text nor a number, or with an empty text.
        with_target: whether rows have targets.

    Raises:
        UserError: a source cannot be read, or a row is bad and bad rows are refused.
    """
    for number, (source, revision) in enumerate(zip(sources, revisions, strict=True)):
        columns = source_columns(source, with_target=with_target)
        for row in source_rows(source.source, columns, revision):
            if problem := row.problem or _problem(row.values, columns):
                bad_rows.add(f"{row.place} {problem}")
                continue
            pair = _pair(source, number, len(sources) > 1, row, columns, with_target)
            empty = "input" if not pair.input.strip() else "target" if with_target and not pair.target.strip() else None
            if empty:
                bad_rows.add(f"{row.place} has an empty {empty}")
            else:
                yield pair


def _problem(values: dict[str, Any], columns: list[str]) -> str:
    """The problem of a row that has all columns; empty if there is none."""
    for name in columns:
        value = values[name]
        if type(value) not in (str, int, float):
            return f"has {describe(value)} in column {name!r}, where text or a number is needed"
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError as error:
                return f"has an unpaired surrogate ({value[error.start]!a} at {error.start}) in column {name!r}"
    return ""


def _pair(source: SourceConfig, number: int, is_mixture: bool, row: Row, columns: list[str], with_target: bool) -> Pair:
    values = {name: str(row.values[name]) for name in columns}
    text = render(source.input or "", values)
    group = values[source.group] if source.group else (source.name or source.source) if is_mixture else None
    return Pair(
        input=text,
        target=render(source.target or "", values) if with_target else "",
        split_by=values[source.split_by] if source.split_by else text,
        group=group,
        columns={name: values[name] for name in source_columns(source, with_target=False) if name in values},
        source=number,
    )
