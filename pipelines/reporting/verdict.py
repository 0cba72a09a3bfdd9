"""What a report says in words: why a fraction is missing, and what is worse than a baseline.

Rows and reports are those of report.json. A suffix tells which baseline a figure is against.
"""

from typing import Any

AGAINST = {"": "baseline", "_long": "long baseline"}


def why_undefined(value: float, interval: tuple[float, float], against: str) -> str:
    """Why there is no fraction of a gain of ``value`` nats with this interval over the baseline called ``against``."""
    low, high = interval
    if low == high:
        return f"one document and one seed do not say how sure the teacher's gain over the {against} is"
    gain, bounds = f"{value:.4f} nats per target token", f"95 % interval [{low:.4f}, {high:.4f}]"
    if high < 0:
        return f"the teacher is worse than the {against}: its gain is {gain}, and its whole {bounds} is below 0"
    reaches = "reaches 0" if low <= 0 else "is too near to 0"
    return f"the teacher's gain over the {against} is {gain}, and its {bounds} {reaches}"


def why_none(rows: list[dict[str, Any]], suffix: str) -> str:
    """Why none of ``rows`` has a fraction, in a word: every teacher is worse than the baseline, or one gain is unsure.

    The mean of several ratios has no gain of its own, and is undefined.
    """
    return "negative" if all(_is_negative(row, suffix) for row in rows) else "undefined"


def verdicts(report: dict[str, Any]) -> str:
    """Sentences for below the table: which teachers and students are worse than a baseline, whose gain is unsure."""
    rows = report["ratios"]
    return "".join(
        _teachers(rows, name, suffix) + _students(rows, name, report[name.replace(" ", "_")]["quality"])
        for suffix, name in AGAINST.items()
    )


def _teachers(rows: list[dict[str, Any]], name: str, suffix: str) -> str:
    """Of those whose gain has no fraction."""
    worse: dict[str, None] = {}  # a ratio stands once, however many students its teacher has
    unsure: dict[str, dict[str, None]] = {}
    for row in rows:
        if row[f"fraction_kept{suffix}"] is not None:
            continue
        low, high = row[f"gain{suffix}_interval"]
        if _is_negative(row, suffix):
            worse[f"{row['ratio']} (its gain is {row[f'gain{suffix}']:.3f} [{low:.3f}, {high:.3f}])"] = None
        elif low == high:
            reason = f"one document and one seed do not say how sure the gain over the {name} is"
            unsure.setdefault(reason, {})[row["ratio"]] = None
        elif low <= 0:
            unsure.setdefault(f"the gain over the {name} has an interval that reaches 0", {})[row["ratio"]] = None
        else:  # which depends on the student too
            unsure.setdefault(f"the gain over the {name} is too near to 0", {})[_title(row)] = None
    text = f" Worse than the {name}, and in no mean: the teacher of {', '.join(worse)}." if worse else ""
    return text + "".join(f" Undefined, and in no mean, for {', '.join(of)}: {why}." for why, of in unsure.items())


def _students(rows: list[dict[str, Any]], name: str, quality: float) -> str:
    below = {_title(row): quality - row["student_quality"] for row in rows if row["student_quality"] < quality}
    if not below:
        return ""
    if len(below) == len(rows) > 1:
        return f" Every student is below the {name}, by {min(below.values()):.4f} to {max(below.values()):.4f} nats."
    return f" Below the {name}: the student of {', '.join(f'{one} by {by:.4f}' for one, by in below.items())} nats."


def _title(row: dict[str, Any]) -> str:
    return " ".join(filter(None, (row["ratio"], row["variant"])))


def _is_negative(row: dict[str, Any], suffix: str) -> bool:
    """Whether the teacher is worse than the baseline for sure: the whole interval of its gain is below 0."""
    low, high = row.get(f"gain{suffix}_interval", (0.0, 0.0))
    return low < high < 0
