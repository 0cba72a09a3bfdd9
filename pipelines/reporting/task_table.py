"""The sections of report.md that only a task has, and groups.csv."""

from typing import Any

from distill.metrics import METRICS
from pipelines.reporting.cells import csv_text, escaped, flat_row, kept, markdown_table, metric_gain, metric_value
from pipelines.reporting.task_report import KEPT_AT_LEAST, MIN_GROUP_DOCUMENTS
from pipelines.reporting.verdict import title

_LISTED = 10  # groups at each end of the order


def task_sections(report: dict[str, Any]) -> str:
    """The text of report.md on metrics, groups and answers.

    Args:
        report: the values of report.json of a task.
    """
    return _metrics(report) + _groups(report) + _examples(report)


def groups_csv(report: dict[str, Any]) -> str:
    """The text of groups.csv: a line per ratio, variant and group, with all figures at full precision."""
    lines = [
        {"ratio": row["ratio"], "variant": row["variant"], **flat_row(group)}
        for row in report["ratios"]
        for group in row["groups"]
    ]
    return csv_text(lines)


def _metrics(report: dict[str, Any]) -> str:
    rows, names = report["ratios"], list(report["ratios"][0]["metrics"])
    if not names:
        return ""
    header = ["metric", "ratio", "baseline", "long baseline", "teacher", "student", "gain", "kept", "kept, long"]
    cells = []
    for name in names:
        for row in rows:
            of = row["metrics"][name]
            values = [metric_value(name, of[model]) for model in ("baseline", "long_baseline", "teacher", "student")]
            cells.append([f"`{name}`", title(row), *values, metric_gain(name, of), kept(of, ""), kept(of, "_long")])
    facts = []
    for name in names:
        signature = METRICS[name].signature()
        facts.append(
            f"- `{name}`: {METRICS[name].unit}; {METRICS[name].better} is better"
            + (f"; `{signature}`." if signature else ".")
        )
    facts += [f"- {sentence}." for sentence in report["data"]["remarks"]]
    return (
        f"## Metrics of the answers\n\n{markdown_table(header, cells)}\n\n"
        "Answers are generated greedily. A gain is the teacher's improvement over the baseline, also where lower is "
        "better. A fraction is undefined if the interval of the gain reaches 0, and negative if the whole interval is "
        "below 0.\n\n" + "\n".join(facts) + "\n\n"
    )


def _groups(report: dict[str, Any]) -> str:
    if not report["ratios"][0].get("groups"):
        return ""
    data = report["data"]
    row = next(row for row in report["ratios"] if row["ratio"] == report["ratios"][-1]["ratio"])
    shares = [
        [
            title(one),
            f"{one['group_shares']['groups']:,}",
            f"{one['group_shares']['gain']:.0%}",
            f"{one['group_shares']['keep_30_percent']:.0%}",
        ]
        for one in report["ratios"]
    ]
    header = ["ratio", "groups", "teacher gains", f"student keeps {KEPT_AT_LEAST:.0%}"]
    ordered = sorted(row["groups"], key=lambda one: one["gain"], reverse=True)
    listed = ordered if len(ordered) <= 2 * _LISTED else [*ordered[:_LISTED], *ordered[-_LISTED:]]
    which = "All groups" if listed is ordered else f"The {_LISTED} groups with the largest and with the smallest gain"
    return (
        f"## Groups\n\n{markdown_table(header, shares)}\n\nThe shares are of the groups in which the teacher is better "
        f"than the baseline, and of those in which the student keeps {KEPT_AT_LEAST:.0%} or more of this gain. They "
        f"compare values and not intervals.{_small_groups(data)}\n\n"
        f"{which}, for {title(row)}, by the teacher's gain:\n\n{_group_table(listed)}\n\n"
        "All groups are in `groups.csv`, and the plot `groups.png` shows them.\n\n"
    )


def _small_groups(data: dict[str, Any]) -> str:
    """Sentences on groups that do not count because they have few examples or none."""
    text = ""
    if few := data["small_groups"]:
        named = ", ".join(escaped(name, 40) for name in few)
        number = "1 group has" if len(few) == 1 else f"{len(few):,} groups have"
        text += f" {number} fewer than {MIN_GROUP_DOCUMENTS} documents and no part in the shares: {named}."
    if absent := data["groups_without_examples"]:
        text += f" Without {data['eval_split']} examples: {', '.join(escaped(name, 40) for name in absent)}."
    return text


def _group_table(groups: list[dict[str, Any]]) -> str:
    names = list(groups[0]["metrics"])
    header = ["group", "examples", "documents", "Q baseline", "Q teacher", "Q student", "gain", "kept"]
    header += [f"{name}: baseline, teacher, student" for name in names]
    rows = []
    for one in groups:
        low, high = one["gain_interval"]
        qualities = [f"{one[f'{model}_quality']:.3f}" for model in ("baseline", "teacher", "student")]
        gain = f"{one['gain']:.3f} [{low:.3f}, {high:.3f}]"
        metrics = [
            ", ".join(metric_value(name, one["metrics"][name][model]) for model in ("baseline", "teacher", "student"))
            for name in names
        ]
        counts = [f"{one['examples']:,}", f"{one['documents']:,}"]
        rows.append([escaped(one["group"], 40), *counts, *qualities, gain, kept(one, ""), *metrics])
    return markdown_table(header, rows)


def _examples(report: dict[str, Any]) -> str:
    shown = report["examples"]
    if not shown:
        return ""
    header = list(shown[0])
    rows = [[escaped(one[name]) for name in header] for one in shown]
    return (
        f"## Answers to {len(shown)} {report['data']['eval_split']} examples\n\n"
        f"{markdown_table([escaped(name) for name in header], rows, of_text=True)}\n\n"
        "A hash of the inputs chooses the examples. The answers are those of the first seed; the report's run has the "
        "answers to all examples as a table.\n\n"
    )
