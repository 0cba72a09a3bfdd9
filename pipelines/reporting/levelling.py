"""Whether the dense baseline has levelled off: whether more training steps would still change the comparison."""

import math
from typing import Any, TypedDict

MORE_STEPS = 0.25  # the rule's additional steps, as a share of the baseline's
LARGEST_CHANGE = 0.1  # in these steps, as a share of the smallest gain of a teacher


class Levelling(TypedDict):
    """The entry "levelling" of report.json."""

    change: float | None  # of the baseline's quality over 25 % more steps, in nats per target token
    smallest_gain: float  # of a teacher, over the long baseline
    levelled_off: bool | None  # None: the long baseline took no more steps


def levelling(report: dict[str, Any]) -> Levelling:
    """Apply the rule to a report: 25 % more steps change the baseline by less than a tenth of the smallest gain.

    The baseline and the long baseline have different numbers of steps, s and l, but seldom differ by 25 %. The change
    is (Q long - Q) log(1.25) / log(l / s), as if the quality were linear in the logarithm of the steps between them.

    Args:
        report: the values of report.json. Of each row, "gain_long" is read. The gain over a shorter baseline would be
            larger because of the teacher's steps alone.
    """
    short, long = report["baseline"], report["long_baseline"]
    gain = min(row["gain_long"] for row in report["ratios"])
    if long["steps"] <= short["steps"]:
        return {"change": None, "smallest_gain": gain, "levelled_off": None}
    share = math.log(1 + MORE_STEPS) / math.log(long["steps"] / short["steps"])
    change = (long["quality"] - short["quality"]) * share
    return {"change": change, "smallest_gain": gain, "levelled_off": abs(change) < LARGEST_CHANGE * gain}


def levelling_sentence(report: dict[str, Any]) -> str:
    """The result of the rule as a sentence; empty if the long baseline took no more steps."""
    found: Levelling = report["levelling"]
    if found["change"] is None:
        return ""
    steps, nats = f"{MORE_STEPS:.0%} more steps", f"{found['change']:+.4f} nats"
    if found["smallest_gain"] <= 0:
        none = "a teacher has no gain over the long baseline to compare this with"
        return f"{steps} change the baseline's quality by {nats}; {none}. "
    change = f"{steps} change its quality by {nats}"
    tenth = (
        f"a tenth of the smallest gain of a teacher over the long one ({LARGEST_CHANGE * found['smallest_gain']:.4f})"
    )
    if found["levelled_off"]:
        return f"The baseline has levelled off: {change}, less than {tenth}. "
    if found["change"] < 0:
        return f"More training makes the baseline worse: {change}, and its size is not less than {tenth}. "
    return (
        f"The baseline is still learning: {change}, which is not less than {tenth}, so the fraction against the long "
        "baseline counts. "
    )
