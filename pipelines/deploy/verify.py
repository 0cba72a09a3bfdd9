"""The check of an export: its parity with the student, and for a task the metrics of both."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipelines.deploy.export_source import Source, held_out_examples
from pipelines.deploy.task_record import task_record
from pipelines.tracking.tracked_run import TrackedRun

if TYPE_CHECKING:  # it imports torch
    from students.export.parity import Parity


class CheckedExport(NamedTuple):
    """The results of a check that has passed."""

    parity: "Parity"
    plain: "Parity | None"  # parity of ``PlainT5``, for the format hf
    compute_type: str  # of the runtime
    versions: dict[str, str]  # of the libraries that the runtime imported
    task: dict[str, Any] | None  # see ``task_record``; None for a student of span corruption


def verify_export(
    source: Source,
    workdir: Path,
    text: str | None,
    directory: Path,
    settings: dict[str, str],
    tracked: TrackedRun | None,
) -> CheckedExport:
    """Check the parity of the export with the student. The figures are logged also if the check fails.

    Args:
        source: the student.
        workdir, text: where the held-out examples are, see ``held_out_examples``.
        directory: the export.
        settings: ``format`` and ``precision``.
        tracked: the MLflow run of the export, if a store knows the student.

    Raises:
        UserError: there are no held-out examples.
        students.export.parity.ParityFailure: the export differs from the student.
    """
    from students.export.parity import check_parity, compare, compare_plain_t5, run_export, student_reference

    held_out = held_out_examples(source, workdir, text)
    if tracked:
        size = {"tokens": held_out.tokens}
        tracked.log_data(held_out.name, held_out.digest, held_out.split, held_out.source, size)
    reference = student_reference(source.directory, held_out.examples)
    reply = run_export(directory, held_out.examples, reference.answers)
    parity = compare(reference, reply)
    task = task_record(source, held_out, reference.answers, reply["answers"])
    if tracked:
        metrics = {name: values["export"] for name, values in task["metrics"].items()} if task else {}
        tracked.log_results(asdict(parity) | metrics)
    check_parity(parity, settings["precision"], "the export differs from the student")
    checked = CheckedExport(parity, None, reply["compute_type"], reply["versions"], task)
    if settings["format"] != "hf":
        return checked
    plain = compare_plain_t5(directory, held_out.examples, reference)
    if tracked:
        tracked.log_results({f"plain_t5_{name}": value for name, value in asdict(plain).items()})
    only = f"only transformers {checked.versions['transformers']} reads the files of this hf export correctly"
    check_parity(plain, settings["precision"], f"{only}; use --format onnx or ctranslate2. Another reader differs")
    return checked._replace(plain=plain)
