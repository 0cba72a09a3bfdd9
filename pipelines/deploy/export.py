"""``switch-distill export``: find the student, write it in a format, let the gate judge it, and say what it is."""

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
from pipelines.deploy.card import model_card, report_row
from pipelines.deploy.export_source import Source, find_source, held_out_text
from pipelines.tracking.lineage import read_lineage
from pipelines.tracking.run import TrackedRun, describe_run
from pipelines.tracking.store_uri import UNREADABLE, check_path
from students.export import check_format, write_export

if TYPE_CHECKING:
    from students.export.parity import Parity

# Instructions that decide how fast, and int8 also how exact, a runtime is.
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


def export(
    model: str,
    output: Path,
    *,
    format: str,
    precision: str = "float32",
    workdir: Path,
    text: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Write a student to ``output`` once its own runtime there has been shown to answer as the student does.

    Args:
        model: a run id, ``models:/NAME/VERSION``, ``models:/NAME@ALIAS``, or a directory.
        format, precision: see ``students.export.FORMATS``.
        workdir: whose store knows the model, and whose held-out text the gate reads.
        text: files (a glob) to compare on instead, for a model that no store knows.

    Returns:
        The manifest.

    Raises:
        UserError: the model, the format or the text cannot be used, or ``output`` exists.
        DiskFull: nothing is left at ``output``.
        StoreError: the store does not answer; nothing is left at ``output``.
        students.export.parity.ParityFailure: the export differs from the student; nothing is left at ``output``.
    """
    check_format(format, precision)
    _check_output(output, format)
    source = find_source(model, workdir, text)
    weights = sum(file.stat().st_size for file in source.directory.rglob("*") if file.is_file())
    # An onnx export has two graphs with embeddings of their own, and beside them the source of int8.
    needed = weights * (3 if format == "onnx" else 1)
    require_space(output, needed, "the export", "free some, or choose another --output")
    title = f"export {format}" + ("" if precision == "float32" else f" {precision}")
    settings = {"format": format, "precision": precision}
    with _run(source, title, settings) as tracked, new_directory(output, needed) as tmp_dir:
        write_export(source.directory, tmp_dir, format, precision)
        write_json(tmp_dir / "manifest.json", settings)
        say(f"{title}: comparing its answers in a fresh process with the student's")
        parity, plain, reply = _verify(source, workdir, text, tmp_dir, settings, tracked)
        (tmp_dir / "manifest.json").unlink()  # until here it said how to load the files, from now on what they are
        lineage = _lineage(source, title, tmp_dir, output, parity, tracked)
        write_json(tmp_dir / "lineage.json", lineage)
        row = report_row(source.store, lineage) if source.store else None
        card = model_card(lineage, row, format, precision, parity, plain, reply["versions"])
        write_text(tmp_dir / "model_card.md", card)
        manifest = {
            "format": format,
            "precision": precision,
            "compute_type": reply["compute_type"],
            "versions": reply["versions"],
            "processor": _processor(),
            "parity": asdict(parity),
            **({"parity_of_plain_t5": asdict(plain)} if plain else {}),
            "files": {name: file_digest(tmp_dir / name) for name in _names(tmp_dir)},
        }
        write_json(tmp_dir / "manifest.json", manifest)
    return manifest


def _check_output(output: Path, format: str) -> None:
    """Raise UserError where an export of ``format`` could not be written, or be read again."""
    if output.exists():
        raise UserError(f"--output {output} exists already; remove it, or choose another directory")
    check_path(output, "--output")
    if format != "mlflow":
        return
    # MLflow's own server for models takes a path alone, in which it unquotes the directories above too.
    if found := UNREADABLE.search(output.name) or re.search("%[0-9a-fA-F]{2}", str(output.absolute())):
        raise UserError(
            f"--output {output} cannot be read by MLflow, to which {found[0]!r} in a model's path means something "
            "else; choose a directory without it"
        )


def _verify(
    source: Source,
    workdir: Path,
    text: str | None,
    directory: Path,
    settings: dict[str, str],
    tracked: TrackedRun | None,
) -> tuple["Parity", "Parity | None", dict[str, Any]]:
    """The gate: of the export's own runtime, of ``PlainT5`` for ``hf``, and what the runtime says of itself.

    Figures are logged whatever they are.
    """
    from tokenizers import Tokenizer

    from students.export.parity import ask, ask_plain_t5, check, compare, make_examples, student_reference

    held_out = held_out_text(source, workdir, text)
    if tracked:
        size = {"tokens": len(held_out.tokens)}
        tracked.log_data(held_out.name, held_out.digest, held_out.split, held_out.source, size)
    tokenizer = Tokenizer.from_file(str(source.directory / "tokenizer.json"))
    examples = make_examples(held_out.tokens, held_out.words, tokenizer)
    reference = student_reference(source.directory, examples)
    reply = ask(directory, examples, reference.answers)
    parity = compare(reference, reply)
    if tracked:
        tracked.log_results(asdict(parity))
    check(parity, settings["precision"], "the export does not answer as the student does")
    if settings["format"] != "hf":
        return parity, None, reply
    plain = ask_plain_t5(directory, examples, reference)
    if tracked:
        tracked.log_results({f"plain_t5_{name}": value for name, value in asdict(plain).items()})
    only = f"only transformers {reply['versions']['transformers']} reads this student from the files of hf"
    check(plain, settings["precision"], f"{only}; use --format onnx or ctranslate2. Another reader differs")
    return parity, plain, reply


@contextlib.contextmanager
def _run(source: Source, title: str, settings: dict[str, str]) -> Iterator[TrackedRun | None]:
    """The export's own MLflow run, with the student as its input; none for a model that no store knows."""
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
    """What lineage.json holds: the export at the root, then what MLflow knows of its student."""
    if tracked is None:
        unknown = {"model_id": None, "run_id": None, "run": None, "stage": None, "metrics": {}, "datasets": []}
        student = {**unknown, "model": source.name, "sha256": directory_digest(source.directory), "inputs": []}
        exported = {**unknown, "model": title, "sha256": directory_digest(directory), "stage": "export"}
        return {**exported, "metrics": asdict(parity), "inputs": [student]}
    name = f"{source.lineage['model']}-{title.removeprefix('export ').replace(' ', '-')}"
    model_id, _ = tracked.log_model_output(name, directory, {"export": title}, upload=False, form="export")
    tracked.client.set_logged_model_tags(model_id, {"directory": str(output.absolute())})
    return read_lineage(source.store, model_id)


def _names(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def _processor() -> dict[str, Any]:
    """Name and the instructions that matter, as far as the system tells."""
    facts = {"machine": platform.machine(), "name": platform.processor(), "flags": []}
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        facts["name"] = values.get("model name", facts["name"])
        known = values.get("flags", values.get("Features", "")).split()
        facts["flags"] = [flag for flag in _FLAGS if flag in known]
    return facts
