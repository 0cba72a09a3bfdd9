"""The words of a report: names and steps of rows, why a fraction is undefined, which models are worse than a baseline.

Rows and reports are those of report.json. The suffix of a key says which baseline its figure is compared with.
"""

from typing import Any

AGAINST = {"": "baseline", "_long": "long baseline"}  # a key of a report has "_" for the space


def title(row: dict[str, Any]) -> str:
    """Name of a row in sentences, tables and plots: its ratio, and its variant if there is one."""
    return " ".join(filter(None, (row["ratio"], row["variant"])))


def as_many_together(report: dict[str, Any]) -> str:
    """Whether teacher and student together take the steps of the long baseline, with the rows in which they do not.

    A variant may have more steps than the long baseline, and after early stopping any model may have fewer. The steps
    of a teacher that this run does not train are unknown.
    """
    together = {
        title(row): None if row["teacher_steps"] is None else row["teacher_steps"] + row["student_steps"]
        for row in report["ratios"]
    }
    if set(together.values()) == {None}:
        return " (teacher and student together: unknown)"
    others = {name: steps for name, steps in together.items() if steps != report["long_baseline"]["steps"]}
    listed = ", ".join(f"{'unknown' if steps is None else f'{steps:,}'} for {name}" for name, steps in others.items())
    if len(others) == len(together):
        return f" (teacher and student together: {listed})"
    return ", as many as teacher and student together" + (f" (except {listed})" if others else "")


def why_undefined(
    value: float, interval: tuple[float, float], against: str, unit: str = "nats per target token"
) -> str:
    """The reason why a gain has no fraction, if the sample has several documents or seeds.

    Args:
        value: the teacher's gain.
        interval: of the gain.
        against: the name of the baseline.
        unit: of the gain.
    """
    low, high = interval
    if low == high == 0:  # a metric of which no model has anything, for example
        return f"the teacher's gain over the {against} is 0 in every document"
    gain, bounds = f"{value:.4f} {unit}", f"95 % interval [{low:.4f}, {high:.4f}]"
    if high < 0:
        return f"the teacher is worse than the {against}: its gain is {gain}, and its whole {bounds} is below 0"
    reaches = "reaches 0" if low <= 0 else "is too close to 0"
    return f"the teacher's gain over the {against} is {gain}, and its {bounds} {reaches}"


def why_no_interval(against: str) -> str:
    """The reason why a gain has no fraction, if the sample has one document and one seed."""
    return f"one document and one seed give no interval of the teacher's gain over the {against}"


def why_none(rows: list[dict[str, Any]], suffix: str) -> str:
    """One word for rows without a fraction: "negative" if every teacher is worse than the baseline, else "undefined".

    The row of a mean over ratios has no gain of its own, so it is "undefined".
    """
    return "negative" if all(_is_negative(row, suffix) for row in rows) else "undefined"


def without_fraction(row: dict[str, Any], suffix: str) -> str:
    """Name of what the reason for an absent fraction depends on: the teacher, or the teacher and its student."""
    too_close_to_0 = row[f"gain{suffix}_interval"][0] > 0 and not _has_no_interval(row, suffix)
    return title(row) if too_close_to_0 else row["ratio"]


def verdicts(report: dict[str, Any]) -> str:
    """Sentences below the table: teachers and students worse than a baseline, and teachers with an uncertain gain."""
    rows = report["ratios"]
    return "".join(
        _teachers(rows, name, suffix) + _students(rows, name, report[name.replace(" ", "_")]["quality"])
        for suffix, name in AGAINST.items()
    )


def _teachers(rows: list[dict[str, Any]], name: str, suffix: str) -> str:
    """The sentences on teachers whose gain has no fraction."""
    worse: dict[str, None] = {}  # a ratio occurs once, also if its teacher has several students
    unsure: dict[str, dict[str, None]] = {}
    for row in rows:
        if row[f"fraction_kept{suffix}"] is not None:
            continue
        low, high = row[f"gain{suffix}_interval"]
        if _is_negative(row, suffix):
            worse[f"{row['ratio']} (gain {row[f'gain{suffix}']:.3f} [{low:.3f}, {high:.3f}])"] = None
            continue
        if _has_no_interval(row, suffix):
            why = f"one document and one seed give no interval of the gain over the {name}"
        elif low <= 0:
            why = f"the gain over the {name} has an interval that reaches 0"
        else:
            why = f"the gain over the {name} is too close to 0"
        unsure.setdefault(why, {})[without_fraction(row, suffix)] = None
    text = f" Worse than the {name} and excluded from means: the teacher of {', '.join(worse)}." if worse else ""
    return text + "".join(f" Undefined and excluded from means: {', '.join(of)} ({why})." for why, of in unsure.items())


def _students(rows: list[dict[str, Any]], name: str, quality: float) -> str:
    below = {title(row): quality - row["student_quality"] for row in rows if row["student_quality"] < quality}
    if not below:
        return ""
    if len(below) == len(rows) > 1:
        return f" Every student is below the {name}, by {min(below.values()):.4f} to {max(below.values()):.4f} nats."
    return f" Below the {name}: the student of {', '.join(f'{one} by {by:.4f}' for one, by in below.items())} nats."


def _is_negative(row: dict[str, Any], suffix: str) -> bool:
    """Whether the whole interval of the teacher's gain is below 0."""
    _, high = row.get(f"gain{suffix}_interval", (0.0, 0.0))
    return high < 0 and not _has_no_interval(row, suffix)


def _has_no_interval(row: dict[str, Any], suffix: str) -> bool:
    """Whether the sample of a row without a fraction has one document and one seed.

    The ends of its interval do not tell: they are also equal if the gain is the same in every document.
    """
    return row.get(f"fraction{suffix}_undefined") == why_no_interval(AGAINST[suffix])
