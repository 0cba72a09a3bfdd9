"""What ``switch-distill serve`` serves: an exported student, exported first where need be, and its teacher beside it.

Imports no torch: the process of an onnx or ctranslate2 server stays small.
"""

import contextlib
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from distill.data.vocabulary import check_same_words, read_vocabulary
from distill.errors import UserError
from distill.io.files import directory_uri
from pipelines.workdir.commands import quoted, suggest
from students.runtime import Runner, load_runner, read_manifest
from students.serving.limits import Limits
from teachers.check import check_teacher


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
    """Serve ``model`` until it is stopped.

    Args:
        model: an exported directory, or anything that ``switch-distill export`` takes.
        teacher: the directory of a Switch teacher, for the page to compare with.
        allowed_hosts: that requests may name besides ``host`` and loopback's; "*" is any.
        format: of the export; an exported directory's own, or hf, if None.
        text: files (a glob) to verify the export on, for a model that no store knows.
        threads: for each model; the runtime's default if None.

    Raises:
        UserError: the model cannot be found, exported or served, the address is taken, or a host is not a name.
    """
    check(model, teacher)
    from students.serving.hosts import allowed_names
    from students.serving.models import Model
    from students.serving.server import serve

    allowed_names(host, allowed_hosts)  # what is wrong with them is said before an export that takes minutes

    with exported(model, format, workdir, text, say) as directory:
        check_same_tokenizer(model, directory, teacher)
        longest = _answer_length(directory)
        name = served_name(directory)
        models = [
            Model(
                name,
                lambda: load_runner(directory, threads=threads),
                limits,
                max_tokens=min(longest, limits.max_output),
            )
        ]
        if teacher is not None:
            # One prompt at a time: experts have a capacity per batch, so that company would change an answer.
            alone = replace(limits, max_batch=1)
            beside = name + "-teacher"
            models.append(
                Model(beside, lambda: _load_teacher(teacher, threads), alone, "teacher", models[0].max_tokens)
            )
        serve(models, host, port, allowed_hosts=allowed_hosts, say=say)


def check(model: str, teacher: Path | None) -> None:
    """Say at once what would keep a server from starting.

    Raises:
        UserError: its libraries are not installed, ``teacher`` is no Switch teacher with a tokenizer, or has another
            one than ``model`` where that is a directory.
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
    """Whether ``model``, whose files are in ``student``, and the teacher beside it read and write the same words.

    Raises:
        UserError: they do not.
    """
    if teacher is None or (words := read_vocabulary(student, model)) is None:
        return
    names = (f"--teacher {teacher}", model)
    others = read_vocabulary(teacher, names[0]) or {}
    check_same_words(others, words, names, "name the teacher that the student was made from")


@contextlib.contextmanager
def exported(
    model: str, format: str | None, workdir: Path, text: str | None, say: Callable[[str], None]
) -> Iterator[Path]:
    """The directory of ``model`` exported: itself if it is an export, else a temporary one, verified as all are.

    Raises:
        UserError: it is an export of another format.
        SystemExit: it cannot be exported; the export has said why.
    """
    if (Path(model) / "manifest.json").is_file():
        own = read_manifest(model)["format"]
        if own == "mlflow":
            command = quoted("mlflow", "models", "serve", "-m", directory_uri(Path(model)), "--env-manager", "local")
            raise UserError(f"{model} is an mlflow export; serve it with: {command}")
        if format not in (None, own):
            raise UserError(f"{model} is an export of format {own}; leave out --format, or name the model itself")
        yield Path(model)
        return
    with tempfile.TemporaryDirectory(prefix="switch-distill-") as beside:
        directory = Path(beside) / "export"
        place = Path(model) if Path(model).exists() else model
        command = suggest("export", place, "--format", format or "hf", "--output", "DIR", workdir=workdir)
        say(f"{model} is no export; exporting it (to serve at once: {command})")
        if code := export_in_process(model, format or "hf", "float32", directory, workdir, text):
            raise SystemExit(code)
        yield directory


def export_in_process(model: str, format: str, precision: str, directory: Path, workdir: Path, text: str | None) -> int:
    """``switch-distill export`` in a process of its own, which takes its memory with it; its exit code."""
    command = ["export", model, f"--format={format}", f"--precision={precision}", f"--output={directory}"]
    options = [f"--workdir={workdir}", *([f"--text={text}"] if text else [])]
    return subprocess.run([sys.executable, "-m", "pipelines.cli", *command, *options], stdout=sys.stderr).returncode


def served_name(directory: Path) -> str:
    """What clients call it: the student's name in the lineage of its export."""
    path = directory / "lineage.json"
    if not path.is_file():
        return directory.resolve().name
    return json.loads(path.read_text(encoding="utf-8"))["inputs"][0]["model"]


def _answer_length(directory: Path) -> int:
    path = directory / "generation_config.json"
    return json.loads(path.read_text(encoding="utf-8")).get("max_new_tokens", 64) if path.is_file() else 64


def _load_teacher(directory: Path, threads: int | None) -> Runner:
    from pipelines.deploy.teacher_runner import TeacherRunner

    return TeacherRunner(directory, threads)
