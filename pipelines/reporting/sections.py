"""Sections of report.md below its table: gains in nats, differences between students, and training."""

from typing import Any

from pipelines.reporting.cells import gain, markdown_table
from pipelines.reporting.verdict import AGAINST, title


def gains_section(report: dict[str, Any]) -> str:
    """The gains of teachers and students over both baselines, also where the teacher has no gain to keep."""
    header = ["ratio", *(f"{whose} over the {name}" for name in AGAINST.values() for whose in ("teacher", "student"))]
    keys = [f"{whose}gain{suffix}" for suffix in AGAINST for whose in ("", "student_")]
    rows = [[title(row), *(gain(row, key) for key in keys)] for row in report["ratios"]]
    return f"## Gains of teachers and students, in nats per target token\n\n{markdown_table(header, rows)}\n\n"


def differences_section(report: dict[str, Any]) -> str:
    """Differences between variants by seed; empty with one seed."""
    if not report["differences"]:
        return ""
    lines = [
        "## Differences between students, seed by seed",
        "",
        "Difference of the fraction kept, in percentage points. The fraction of a seed is that of its student and its "
        "own teacher, averaged over ratios. Intervals are 95 % Student's t intervals over seeds.",
        "",
        "| variant | difference | by seed |",
        "| :--- | ---: | ---: |",
    ]
    for one in report["differences"]:
        low, high = one["interval"]
        by_seed = ", ".join(f"{100 * value:+.0f}" for value in one["by_seed"])
        cell = f"{100 * one['difference']:+.0f} [{100 * low:+.0f}, {100 * high:+.0f}]"
        lines.append(f"| {one['variant']} - {one['to']} | {cell} | {by_seed} |")
    return "\n".join(lines) + "\n\n"


def training_section(report: dict[str, Any]) -> str:
    """Steps, tokens and operations of every model, which shows if one of them had more training."""
    rows = [
        ("baseline", report["baseline"]["steps"], report["baseline"]["tokens"], report["baseline"]["flops"]),
        ("long baseline", *(report["long_baseline"][key] for key in ("steps", "tokens", "flops"))),
    ]
    for row in report["ratios"]:
        teacher = (f"teacher {row['ratio']}", row["teacher_steps"], row["teacher_tokens"], row["teacher_flops"])
        if teacher not in rows:
            rows.append(teacher)
        rows.append((f"student {title(row)}", row["student_steps"], row["student_tokens"], row["student_flops"]))
    lines = ["| model | steps | tokens | floating-point operations |", "| :--- | ---: | ---: | ---: |"]
    for name, steps, tokens, flops in rows:
        known = ("unknown",) * 3 if tokens is None else (f"{steps:,}", f"{tokens:,}", f"{flops:.2e}")
        lines.append(f"| {name} | {' | '.join(known)} |")
    table = "\n".join(lines)
    return (
        f"## Training of each model\n\n{table}\n\nThe figures are means over seeds. Those of a student "
        "count its own steps, and its operations include the forward passes of its teacher for soft labels. They do "
        "not count the teacher's answers (`distill.targets: teacher`), the training behind the student's initial "
        "weights, or the fit of its FFNs to the teacher's experts (`student.ffn_init`).\n\n"
    )
