"""``switch-distill export``: find the student, write it in a format, check its parity, and write its description."""

import contextlib
import platform
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.errors import UserError
from distill.io.disk import require_space
from distill.io.files import directory_digest, file_digest, new_directory, write_json, write_text
from distill.processor import read_processor
from pipelines.deploy.card import model_card, report_row
from pipelines.deploy.export_source import Source, find_source
from pipelines.deploy.verify import verify_export
from pipelines.tracking.lineage import read_lineage
from pipelines.tracking.store_uri import UNREADABLE, check_path
from pipelines.tracking.tracked_run import TrackedRun, describe_run
from students.export import check_format, write_export

if TYPE_CHECKING:
    from students.export.parity import Parity

# CPU instructions that determine the speed of a runtime and, for int8, its exactness.
_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "avx_vnni",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
)


def export_student(
    model: str,
    output: Path,
    *,
    format: str,
    precision: str = "float32",
    workdir: Path,
    text: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Write a student to ``output``, after a check that the export's runtime gives the student's answers.

    If an exception is raised, nothing is left at ``output``.

    Args:
        model: a run id, ``models:/NAME/VERSION``, ``models:/NAME@ALIAS``, or a directory.
        output: a directory that does not exist yet.
        format, precision: see ``students.export.FORMATS``.
        workdir: the work directory whose store knows the model and whose held-out data the check reads.
        text: files (a glob) to compare on instead, for a model that no store knows.
        say: called with each line of progress.

    Returns:
        The manifest.

    Raises:
        UserError: the model, the format or the text cannot be used, or ``output`` exists.
        DiskFull: the disk has no space for the export.
        StoreError: the store does not answer.
        students.export.parity.ParityFailure: the export differs from the student.
    """
    check_format(format, precision)
    _check_output(output, format)
    source = find_source(model, workdir, text)
    weights = sum(file.stat().st_size for file in source.directory.rglob("*") if file.is_file())
    # An onnx export has two graphs, each with its own embeddings, and temporarily the float32 source of int8.
    needed = weights * (3 if format == "onnx" else 1)
    require_space(output, needed, "the export", "free some space, or choose another --output")
    title = f"export {format}" + ("" if precision == "float32" else f" {precision}")
    settings = {"format": format, "precision": precision}
    with _run(source, title, settings) as tracked, new_directory(output, needed) as tmp_dir:
        write_export(source.directory, tmp_dir, format, precision)
        write_json(tmp_dir / "manifest.json", settings)
        say(f"{title}: comparing the export, in a new process, with the student")
        checked = verify_export(source, workdir, text, tmp_dir, settings, tracked)
        (tmp_dir / "manifest.json").unlink()  # only for the check; the final manifest follows
        lineage = _lineage(source, title, tmp_dir, output, checked.parity, tracked)
        write_json(tmp_dir / "lineage.json", lineage)
        row = report_row(source.store, lineage) if source.store else None
        card = model_card(lineage, row, format, precision, checked)
        write_text(tmp_dir / "model_card.md", card)
        manifest = {
            "format": format,
            "precision": precision,
            "compute_type": checked.compute_type,
            "versions": checked.versions,
            "processor": _processor(),
            "parity": asdict(checked.parity),
            **({"parity_of_plain_t5": asdict(checked.plain)} if checked.plain else {}),
            **({"task": checked.task} if checked.task else {}),
            "files": {name: file_digest(tmp_dir / name) for name in _names(tmp_dir)},
        }
        write_json(tmp_dir / "manifest.json", manifest)
    return manifest


def _check_output(output: Path, format: str) -> None:
    """Raise UserError if an export of ``format`` cannot be written to ``output`` or read from it."""
    if output.exists():
        raise UserError(f"--output {output} exists already; remove it, or choose another directory")
    check_path(output, "--output")
    if format != "mlflow":
        return
    # MLflow's model server takes only a path, and also unquotes the names of the directories above.
    if found := UNREADABLE.search(output.name) or re.search("%[0-9a-fA-F]{2}", str(output.absolute())):
        raise UserError(
            f"--output {output} cannot be read by MLflow, which gives {found[0]!r} in a model's path another meaning; "
            "choose a directory without it"
        )


@contextlib.contextmanager
def _run(source: Source, title: str, settings: dict[str, str]) -> Iterator[TrackedRun | None]:
    """The MLflow run of the export, with the student as its input; None for a model that no store knows."""
    if source.store is None:
        yield None
        return
    client = source.store.client
    source.store.experiment = client.get_run(source.lineage["run_id"]).info.experiment_id
    with tempfile.TemporaryDirectory() as directory:
        describe_run(Path(directory), {"stage": "export", **settings})
        tracked = TrackedRun(source.store, Path(directory), f"{title} of {source.name}")
        status = "FAILED"
        try:
            tracked.log_params(settings)
            tracked.log_model_inputs({"student": source.lineage["model_id"]})
            yield tracked
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            raise
        finally:
            tracked.close(status)


def _lineage(
    source: Source, title: str, directory: Path, output: Path, parity: "Parity", tracked: TrackedRun | None
) -> dict[str, Any]:
    """The values of lineage.json: the export at the root, then the lineage of its student in MLflow."""
    if tracked is None:
        unknown: dict[str, Any] = {"model_id": None, "run_id": None, "run": None, "stage": None, "loaded": None}
        unknown |= {"metrics": {}, "datasets": []}
        student = {**unknown, "model": source.name, "sha256": directory_digest(source.directory), "inputs": []}
        exported = {**unknown, "model": title, "sha256": directory_digest(directory), "stage": "export"}
        return {**exported, "metrics": asdict(parity), "inputs": [student]}
    name = f"{source.lineage['model']}-{title.removeprefix('export ').replace(' ', '-')}"
    model_id, _ = tracked.log_model_output(name, directory, {"export": title}, upload=False, form="export")
    tracked.client.set_logged_model_tags(model_id, {"directory": str(output.absolute())})
    return read_lineage(tracked.store, model_id)


def _names(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def _processor() -> dict[str, Any]:
    """Name of the processor and its instructions of ``_FLAGS``, as far as the system reports them."""
    found = read_processor()
    flags = [flag for flag in _FLAGS if flag in (found.instructions or ())]
    return {"machine": platform.machine(), "name": found.name, "flags": flags}
