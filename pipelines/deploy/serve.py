"""``switch-distill serve``: serve an exported student, optionally with its teacher. A student is exported first.

Imports no torch, so that the process of an onnx or ctranslate2 server stays small.
"""

import contextlib
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from distill.data.vocabulary import check_same_vocabulary, read_vocabulary
from distill.errors import UserError
from distill.io.files import directory_uri, read_json
from distill.module_command import module_command
from distill.tasks.template import check_template
from pipelines.workdir.commands import quoted, suggest
from students.runtime import Runner, load_runner, read_manifest
from students.serving.limits import Limits
from teachers.check import check_teacher

_AGAIN = "export the model again"  # the cure of a damaged export


def serve_model(
    model: str,
    teacher: Path | None,
    host: str,
    port: int,
    *,
    allowed_hosts: Sequence[str],
    format: str | None,
    workdir: Path,
    text: str | None,
    limits: Limits,
    threads: int | None,
    say: Callable[[str], None],
) -> None:
    """Serve ``model`` until the process is stopped.

    Args:
        model: an exported directory, or any MODEL argument of ``switch-distill export``.
        teacher: the directory of a Switch teacher, which the web page compares the student with.
        host, port: the address to listen on.
        allowed_hosts: hosts that requests may name besides ``host`` and those of loopback; "*" allows any.
        format: format of the export; None: the format of an exported directory, else hf.
        workdir: the work directory whose store knows the model.
        text: files (a glob) to verify the export on, for a model that no store knows.
        limits: limits of requests.
        threads: threads of each model; None: the runtime's default.
        say: called with each line of progress.

    Raises:
        UserError: the model cannot be found, exported or served, the address is in use, or a host name is invalid.
    """
    check_serving(model, teacher)
    from students.serving.hosts import allowed_names
    from students.serving.models import Model
    from students.serving.server import serve

    allowed_names(host, allowed_hosts)  # checks the names before an export that takes minutes

    with exported_model(model, format, workdir, text, say) as directory:
        check_same_tokenizer(model, directory, teacher)
        longest = _answer_length(directory)
        name = served_name(directory)
        template = stored_template(directory)
        models = [
            Model(
                name,
                lambda: load_runner(directory, threads=threads),
                limits,
                max_tokens=min(longest, limits.max_output),
                template=template,
            )
        ]
        if teacher is not None:
            beside = name + "-teacher"
            most = models[0].max_tokens
            models.append(
                Model(beside, lambda: _load_teacher(teacher, threads), limits, "teacher", most, template=template)
            )
        serve(models, host, port, allowed_hosts=allowed_hosts, say=say)


def check_serving(model: str, teacher: Path | None) -> None:
    """Check that a server can start, before any slow step.

    Raises:
        UserError: the libraries of the server are not installed, or ``teacher`` is not a Switch teacher with a
            tokenizer. Also if ``model`` is a directory with another vocabulary than the teacher's.
    """
    if missing := [name for name in ("fastapi", "uvicorn", "prometheus_client") if not importlib.util.find_spec(name)]:
        raise UserError(f'serving needs {", ".join(missing)}; install it with: pip install "switch-distill[serve]"')
    if teacher is None:
        return
    if not (teacher / "tokenizer.json").is_file():
        raise UserError(f"--teacher {teacher} has no tokenizer.json; name the directory of a teacher and its tokenizer")
    for directory in (Path(model), Path(model) / "model"):
        if directory.is_dir():
            check_same_tokenizer(model, directory, teacher)
    check_teacher(str(teacher))


def check_same_tokenizer(model: str, student: Path, teacher: Path | None) -> None:
    """Check that student and teacher have the same vocabulary.

    Args:
        model: the name of the student in messages.
        student: the directory of the student.
        teacher: the directory of the teacher; None: check nothing.

    Raises:
        UserError: the vocabularies differ.
    """
    if teacher is None or (vocabulary := read_vocabulary(student, model)) is None:
        return
    names = (f"--teacher {teacher}", model)
    others = read_vocabulary(teacher, names[0]) or {}
    check_same_vocabulary(others, vocabulary, names, "name the teacher that the student was made from")


@contextlib.contextmanager
def exported_model(
    model: str, format: str | None, workdir: Path, text: str | None, say: Callable[[str], None]
) -> Iterator[Path]:
    """The directory of an export: ``model`` itself if it is one, else a new verified export in a temporary directory.

    Raises:
        UserError: ``model`` is an export of another format.
        SystemExit: the export failed. Its process has printed the reason.
    """
    if (Path(model) / "manifest.json").is_file():
        own = read_manifest(model)["format"]
        if own == "mlflow":
            command = quoted("mlflow", "models", "serve", "-m", directory_uri(Path(model)), "--env-manager", "local")
            raise UserError(f"{model} is an mlflow export; serve it with: {command}")
        if format not in (None, own):
            raise UserError(f"{model} is an export of format {own}; omit --format, or name the model itself")
        yield Path(model)
        return
    with tempfile.TemporaryDirectory(prefix="switch-distill-") as beside:
        directory = Path(beside) / "export"
        place = Path(model) if Path(model).exists() else model
        command = suggest("export", place, "--format", format or "hf", "--output", "DIR", workdir=workdir)
        say(f"{model} is not an export; exporting it first (to keep the export: {command})")
        if code := export_in_process(model, format or "hf", "float32", directory, workdir, text):
            raise SystemExit(code)
        yield directory


def export_in_process(model: str, format: str, precision: str, directory: Path, workdir: Path, text: str | None) -> int:
    """Run ``switch-distill export`` in its own process, which frees all of its memory; return its exit code."""
    command = ["export", model, f"--format={format}", f"--precision={precision}", f"--output={directory}"]
    options = [f"--workdir={workdir}", *([f"--text={text}"] if text else [])]
    return subprocess.run(module_command("pipelines.cli", *command, *options), stdout=sys.stderr).returncode


class StoredStudent(NamedTuple):
    """The student that an export was made from."""

    name: str
    sha256: str  # digest of its directory; "unknown" if the lineage has none


def stored_student(directory: Path) -> StoredStudent | None:
    """The student in the lineage.json of an export; None if there is no such file.

    Raises:
        UserError: the file is damaged.
    """
    path = directory / "lineage.json"
    if not path.is_file():
        return None
    match read_json(path, _AGAIN):
        case {"inputs": [{"model": str(name), **facts}, *_]}:
            return StoredStudent(name, str(facts.get("sha256") or "unknown"))
    raise UserError(f"{path} is damaged: it names no student; {_AGAIN}")


def served_name(directory: Path) -> str:
    """The name of the model for clients: the student's name in the lineage of the export.

    Raises:
        UserError: the lineage is damaged.
    """
    student = stored_student(directory)
    return student.name if student else directory.resolve().name


def stored_template(directory: Path) -> str | None:
    """The template of the inputs of the student's task in the manifest of an export; None if there is none.

    Raises:
        UserError: the manifest is damaged.
    """
    task = read_manifest(directory).get("task")
    if task is None:
        return None
    try:
        template = task["input"]
        return template if template is None else check_template(template)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"the task in the manifest.json of {directory} is damaged; {_AGAIN}") from error


def _answer_length(directory: Path) -> int:
    path = directory / "generation_config.json"
    if not path.is_file():
        return 64
    values = read_json(path, _AGAIN)
    length = values.get("max_new_tokens", 64) if isinstance(values, dict) else None
    if not isinstance(length, int) or length < 1:
        raise UserError(f"{path} is damaged: it gives no length of answers; {_AGAIN}")
    return length


def _load_teacher(directory: Path, threads: int | None) -> Runner:
    from pipelines.deploy.teacher_runner import TeacherRunner

    return TeacherRunner(directory, threads)
