"""The report as a table: in Markdown, for a terminal, and as CSV."""

from typing import Any

from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table

from distill.data.overlap import WINDOW
from pipelines.reporting.bootstrap import MIN_DOCUMENTS
from pipelines.reporting.cells import csv_text, flat_row, gain, kept, markdown_table, metric_value
from pipelines.reporting.concentration import hardest_sentence, hardest_warning
from pipelines.reporting.levelling import levelling_sentence
from pipelines.reporting.paper import KEPT_IN_TABLE_8, kept_in_paper
from pipelines.reporting.sections import differences_section, gains_section, training_section
from pipelines.reporting.task_table import task_sections
from pipelines.reporting.verdict import AGAINST, as_many_together, verdicts, why_none, without_fraction

_WIDTH = 80  # columns of a terminal


def report_markdown(report: dict[str, Any]) -> str:
    """The text of report.md: the table, and an explanation of its columns."""
    data = report["data"]
    return (
        "# Fraction of the teacher's gain that the student keeps\n\n"
        f"{markdown_table(*_cells(report))}\n\nSize is the teacher's. {_caption(report)}\n\n"
        f"Quality Q is the negative log perplexity on {data['test_examples']:,} examples from "
        f"{data['test_documents']:,} documents of the {data['eval_split']} split (the largest has "
        f"{data['largest_document']:.1%} of the examples), in nats per target token; higher is better. Gain is "
        "Q teacher - Q baseline; kept is (Q student - Q baseline) / gain. Intervals are 95 % paired bootstrap "
        f"intervals over documents and seeds. {_sample(report)}\n\n"
        f"{hardest_sentence(data)} {_overlap(report)}{_lost(data)}\n\n{_undefined_rows(report)}{gains_section(report)}"
        f"{differences_section(report)}"
        f"{task_sections(report) if is_task(report) else ''}"
        f"{training_section(report)}"
        f"Data: {data['name']}, {data['train_tokens']:,} training tokens, digest `{data['digest']}`. "
        f"Report: `{report['fingerprint']}`.\n"
    )


def differ_in_size(report: dict[str, Any]) -> bool:
    """Whether the students of a report have different numbers of parameters, or not that of the baseline."""
    return {row["student_parameters"] for row in report["ratios"]} != {report["baseline"]["parameters"]}


def is_task(report: dict[str, Any]) -> bool:
    """Whether a report is on a task, and not on span corruption."""
    return "metrics" in report["ratios"][0]


def _overlap(report: dict[str, Any]) -> str:
    """Sentences on the text that both splits have, and for a task on truncated texts."""
    data, split = report["data"], report["data"]["eval_split"]
    if not is_task(report):
        return (
            f"Overlap: {data['overlap']:.1%} of the {split} text also occurs in the training text, in runs of "
            f"{WINDOW} tokens or more."
        )
    cut = [
        f"{data[f'truncated_{kind}'][part]:.1%} of the {name} {kind}"
        for kind in ("inputs", "targets")
        for part, name in (("train", "training"), (split, split))
        if data[f"truncated_{kind}"][part]
    ]
    return (
        f"Overlap: {data['overlap']:.1%} of the {split} targets are also targets of training examples. All target "
        "tokens count equally in a quality."
        + (f" Longer than the task allows, and truncated: {', '.join(cut)}." if cut else "")
    )


def _lost(data: dict[str, Any]) -> str:
    """Sentences on parts of the corpus that are not in the data: bad rows, unknown tokens, lost characters."""
    skipped = f" Bad rows of the corpus that were skipped: {data['skipped_rows']:,}." if data["skipped_rows"] else ""
    if not data["unknown_share"] and data["restored_share"] == 1:
        return skipped
    return (
        f"{skipped} The tokenizer loses text: {data['unknown_share']:.1%} of the tokens are unknown, and "
        f"decoding loses {data['lost_share']:.1%} of the characters."
    )


def report_csv(report: dict[str, Any]) -> str:
    """The text of report.csv: a line per ratio and variant, with all figures at full precision.

    An interval has two columns, with the suffixes ``_low`` and ``_high``.
    """
    lines = []
    for row in report["ratios"]:
        line = flat_row(row)
        line |= {f"{name}_quality": report[name]["quality"] for name in ("baseline", "long_baseline")}
        line |= {key: report["data"][key] for key in ("test_examples", "test_documents", "overlap")}
        line |= {"data_digest": report["data"]["digest"], "config": report["config"]}
        lines.append(line | {f"version_{name}": version for name, version in report["versions"].items()})
    return csv_text(lines)


def report_table(report: dict[str, Any]) -> Table:
    """The report for a terminal of 80 columns, with each interval below its figure.

    If there are variants, their column replaces size and compression, which are in report.md. For a task, the first
    metric replaces the size, if it fits. Different sizes of students have a column, which no other replaces.
    """
    metrics = list(report["ratios"][0]["metrics"]) if is_task(report) else []
    if metrics and Console(width=10 * _WIDTH).measure(drawn := _terminal_table(report, metrics[0])).maximum <= _WIDTH:
        return drawn
    return _terminal_table(report, None)


def _terminal_table(report: dict[str, Any], metric: str | None) -> Table:
    header, rows = _cells(report)
    left_out = {"size", "compression"} if "variant" in header else {"size"} if metric else set()
    shown = [place for place, name in enumerate(header) if name not in left_out]
    drawn = Table(
        title="Fraction of the teacher's gain that the student keeps",
        caption="Size is the teacher's. " * ("size" not in left_out) + _caption(report),
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=0,
    )
    for name in (header[place] for place in shown):
        broken = name.replace("compression", "com-\npression").replace("Q ", "Q\n").replace(", ", ",\n")
        broken = "student\nsize" if name == "student" else broken
        justify: JustifyMethod = "left" if name in ("ratio", "variant") else "right"
        drawn.add_column(broken, justify=justify, no_wrap=name != "variant", overflow="fold")
    last = [""] * len(rows)  # a mean over ratios has no value of the metric
    if metric:
        drawn.add_column(metric.replace("_", "_\n"), justify="right", no_wrap=True, overflow="fold")
        last[: len(report["ratios"])] = [_metric_cell(metric, row["metrics"][metric]) for row in report["ratios"]]
    for row, value in zip(rows, last, strict=True):
        cells = [row[place].replace(" [", "\n[") for place in shown]
        drawn.add_row(*cells, *([value] if metric else []))
    return drawn


def _metric_cell(name: str, row: dict[str, Any]) -> str:
    """The student's value, and below it the fraction kept."""
    fraction = row["fraction_kept"]
    below = why_none([row], "") if fraction is None else f"{fraction:z.0%} kept"
    return f"{metric_value(name, row['student'])}\n{below}"


def _cells(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    header = ["ratio", "size", "compression", "Q teacher", "Q student", "gain", "kept", "kept, long", "paper"]
    rows = [
        [
            row["ratio"],
            _millions(row["teacher_parameters"]),
            f"{row['compression']:.0%}",
            f"{row['teacher_quality']:.3f}",
            f"{row['student_quality']:.3f}",
            gain(row, "gain"),
            kept(row, ""),
            kept(row, "_long"),
            kept_in_paper(row["variant"], row["experts"]),
        ]
        for row in report["ratios"]
    ]
    named = [row["variant"] for row in report["ratios"]]
    if len({row["ratio"] for row in report["ratios"]}) > 1:
        for average in report["averages"]:
            both = [kept(average, suffix) for suffix in ("", "_long")]
            rows.append(["mean", *[""] * 5, *both, kept_in_paper(average["variant"], None)])
            named.append(average["variant"])
    if differ_in_size(report):
        header.insert(2, "student")
        for cells, size in zip(rows, [_millions(row["student_parameters"]) for row in report["ratios"]], strict=False):
            cells.insert(2, size)
        for cells in rows[len(report["ratios"]) :]:  # a mean over ratios
            cells.insert(2, "")
    if named[0] is not None:
        header.insert(1, "variant")
        for cells, variant in zip(rows, named, strict=True):
            cells.insert(1, variant)
    if is_task(report):  # the paper's figures are for span corruption
        return header[:-1], [cells[:-1] for cells in rows]
    return header, rows


def _caption(report: dict[str, Any]) -> str:
    """The caption: quality of both baselines, models that are worse, ratios without a fraction, and the sample."""
    short, long = report["baseline"], report["long_baseline"]
    as_students = ", as many as the student" * all(r["student_steps"] == short["steps"] for r in report["ratios"])
    baseline = _millions(short["parameters"])
    of_students = (
        f"Students of every size are compared with a baseline of {baseline} parameters; set baseline.d_ff to compare "
        "them with a dense model of their width"
        if differ_in_size(report)
        else f"Student and baseline have {baseline} parameters"
    )
    text = (
        f"{of_students}. The baseline has quality "
        f"{short['quality']:.3f} after {short['steps']:,} steps{as_students}; the long baseline has "
        f"{long['quality']:.3f} after {long['steps']:,}{as_many_together(report)}. "
    )
    sample = f"{_sample(report)}{hardest_warning(report['data'])}"
    return f"{text}{levelling_sentence(report)}{_of_paper(report)}{verdicts(report)} {sample}"


def _of_paper(report: dict[str, Any]) -> str:
    if is_task(report):
        return f"The paper's student of a fine-tuned teacher keeps {KEPT_IN_TABLE_8:.0%} of its gain (table 8)."
    return (
        "Paper: fraction kept in its tables 6 and 7 with the same technique or with a teacher of as many experts, and "
        "the mean of table 7."
    )


def describe_sample(data: dict[str, Any], seeds: list[int]) -> str:
    """The sample that intervals resample, for example ``89 documents and 3 seeds``.

    Args:
        data: the section ``data`` of report.json.
        seeds: the seeds of a row.
    """
    documents = data["test_documents"]
    return f"{documents:,} document{'s' * (documents != 1)} and {len(seeds)} seed{'s' * (len(seeds) != 1)}"


def _sample(report: dict[str, Any]) -> str:
    """A sentence on the sample that intervals resample, and on their reliability."""
    seeds = report["ratios"][0]["seeds"]
    of, data = f"Intervals resample {describe_sample(report['data'], seeds)}", report["data"]
    if data["too_few_documents"]:
        worth = f", worth {data['effective_documents']:.0f} of equal size"
        uneven = worth if data["test_documents"] >= MIN_DOCUMENTS else ""
        return f"{of}{uneven}; with fewer than {MIN_DOCUMENTS} documents, they cannot be trusted."
    if len(seeds) == 2:
        return f"{of}; two seeds say little about the variation between seeds."
    return f"{of}." if len(seeds) > 1 else f"{of}, so they do not include the variation between seeds."


def _undefined_rows(report: dict[str, Any]) -> str:
    """A list of the reasons why rows have no fraction."""
    reasons = {
        (without_fraction(row, suffix), row[key]): None
        for row in report["ratios"]
        for suffix in AGAINST
        if (key := f"fraction{suffix}_undefined") in row
    }
    return "".join(f"- {name}: {reason}.\n" for name, reason in reasons) + ("\n" if reasons else "")


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:,.2f}M" if parameters < 1e7 else f"{parameters / 1e6:,.0f}M"
