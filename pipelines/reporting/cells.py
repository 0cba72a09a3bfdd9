"""Cells of the tables of a report, and lines of its CSV files."""

import csv
import io
import re
from typing import Any

from distill.metrics import METRICS
from pipelines.reporting.verdict import why_none

_INNER = ("groups", "lengths")  # lists of rows, which have CSV files of their own
_MARKUP = re.compile(r"([\\`*_\[\]<>|~&$])")


def kept(row: dict[str, Any], suffix: str) -> str:
    """A fraction with its interval, or one word for its absence (``why_none``)."""
    if row[f"fraction_kept{suffix}"] is None:
        return why_none([row], suffix)
    fraction, (low, high) = row[f"fraction_kept{suffix}"], row[f"fraction{suffix}_interval"]
    return f"{fraction:z.0%} [{100 * low:z.0f}, {100 * high:z.0f}]"


def gain(row: dict[str, Any], key: str) -> str:
    """The gain ``key`` of a row in nats, with its interval."""
    low, high = row[f"{key}_interval"]
    return f"{row[key]:z.3f} [{low:z.3f}, {high:z.3f}]"


def metric_value(name: str, value: float) -> str:
    """A value of a metric: in per cent, or as it is if its scale ends at 100."""
    return f"{100 * value:.1f}%" if METRICS[name].in_percent else f"{value:.1f}"


def metric_gain(name: str, row: dict[str, Any]) -> str:
    """A gain in points of a metric, with its interval."""
    scale = 100 if METRICS[name].in_percent else 1
    low, high = row["gain_interval"]
    return f"{scale * row['gain']:z.1f} [{scale * low:z.1f}, {scale * high:z.1f}]"


def escaped(text: str, most: int = 200) -> str:
    """Text of the data as a cell of Markdown: on one line, without effect on the table, at most ``most`` characters."""
    line = " ".join(text.split())
    line = line if len(line) <= most else line[: most - 1] + "…"
    return _MARKUP.sub(r"\\\1", line)


def markdown_table(header: list[str], rows: list[list[str]], *, of_text: bool = False) -> str:
    """A table in Markdown. The first column and columns of text are aligned to the left, and others to the right."""
    other = " :--- |" if of_text else " ---: |"
    lines = ["| " + " | ".join(header) + " |", "| :--- |" + other * (len(header) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def flat_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row or a group of report.json as a line of a CSV file.

    An interval has two columns, with the suffixes ``_low`` and ``_high``. Figures of a metric begin with its name.
    """
    line: dict[str, Any] = {}
    for key, value in row.items():
        if key.endswith("_interval"):
            low, high = value or (None, None)
            line |= {f"{key.removesuffix('_interval')}_low": low, f"{key.removesuffix('_interval')}_high": high}
        elif key == "metrics":
            for name, of_metric in value.items():
                line |= {f"{name}_{one}": figure for one, figure in flat_row(of_metric).items()}
        elif key == "group_shares":
            line |= {f"groups_{one}": share for one, share in value.items()}
        elif isinstance(value, list) and key not in _INNER:
            line[key] = " ".join(str(one) for one in value)
        elif key not in _INNER and not key.endswith("_undefined"):
            line[key] = value
    return line


def csv_text(lines: list[dict[str, Any]]) -> str:
    """The text of a CSV file with a header, from lines with equal keys."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
