"""Wrong input: exit code 2, one line with the cause and what to do, no traceback, and not a byte written.

The list is ``wrong_inputs.txt``, with a case per line: ``COMMAND ==> TEXT``. The message must contain TEXT. ``$name``
is a file of ``wrong_files.py``. ``<<< 'text'`` writes the file ``$input``. A line that begins with ``!`` runs in its
own process with a limit of two seconds of CPU time, and may begin with environment variables. To add a case, add a
line.
"""

import functools
import importlib.util
import os
import re
import resource
import runpy
import shlex
import signal
import string
import subprocess
import sys
import types
import typing
from pathlib import Path
from types import SimpleNamespace as Values

import pytest
import typer.main
from pydantic import BaseModel

from distill.errors import UserError
from pipelines.cli import app as cli
from pipelines.config.run_config import RunConfig
from pipelines.stages import baseline
from pipelines.tracking import store_uri
from students import init_student
from teachers import load_teacher

HERE = Path(__file__).parent
NAMED = runpy.run_path(str(HERE / "wrong_files.py"))["NAMED"]
LINES = (HERE / "wrong_inputs.txt").read_text(encoding="utf-8").splitlines()
CASES = [line for line in LINES if line and not line.startswith("#")]
COMMAND_LINE = functools.cache(typer.main.get_command)  # typer would make the parsers of all commands for each command


class Place:
    """A directory with a work directory in it. Tests compare its state before and after a command."""

    def __init__(self, root: Path):
        self.root, self.files = root, root / "files"
        self.files.mkdir()
        (root / "work" / "stages").mkdir(parents=True)
        (root / "work" / "mine.txt").write_text("kept")

    def named(self, name: str) -> Path:
        path = self.files / name
        if name in NAMED and not os.path.lexists(path):
            NAMED[name](self.named, path)
        return path

    def command(self, line: str) -> tuple[list[str], dict[str, str], str]:
        """Arguments, environment variables, and the text that the message must contain."""
        command, _, text = line.removeprefix("!").rpartition(" ==> ")
        command, _, content = command.partition(" <<< ")
        if content:
            written = shlex.split(content)[0].encode("latin-1", "backslashreplace").decode("unicode_escape")
            (self.files / "input").write_bytes(written.encode("latin-1"))
        names = string.Template(command).get_identifiers()
        words = shlex.split(string.Template(command).substitute({name: self.named(name) for name in names}))
        variables = {}
        while line.startswith("!") and "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            variables[name] = value
        return words, variables, text.strip()

    def state(self) -> dict[str, tuple[int, ...]]:
        """All paths, and for files the inode, the size and the times of the last write and of the last change."""
        found: dict[str, tuple[int, ...]] = {}
        for directory, directories, files in os.walk(self.root):
            found |= {os.path.join(directory, name): () for name in directories}
            for path in (os.path.join(directory, name) for name in files):
                status = os.lstat(path)
                found[path] = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        return found


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("wrong"))


@pytest.fixture
def run(place, monkeypatch, capsys):
    """Run a command in this process, and return its exit code and its output."""
    terminate = signal.getsignal(signal.SIGTERM)
    monkeypatch.chdir(place.root)
    monkeypatch.setattr(store_uri, "ASKED_FOR", None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("typer.main.get_command", COMMAND_LINE)

    def run_here(words: list[str]) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["switch-distill", *words])
        capsys.readouterr()
        return cli._main(), capsys.readouterr().err

    yield run_here
    signal.signal(signal.SIGTERM, terminate)


def run_apart(place: Place, words: list[str], variables: dict[str, str]) -> tuple[int, str]:
    """Run a command in its own process, which may take at most two seconds of CPU time."""
    known = {"PYTHONPATH": str(HERE.parents[1]), "MLFLOW_TRACKING_URI": "", "HF_HUB_OFFLINE": "1"}
    environment = {**os.environ, **known, "OMP_NUM_THREADS": "1", **variables}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "pipelines.cli", *words]
    done = subprocess.run(command, cwd=place.root, env=environment, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2
    assert not done.stdout
    return done.returncode, done.stderr


def check_message(code: int, said: str) -> str:
    assert code == 2, said
    assert "Traceback" not in said
    message = said.rstrip("\n").split("\n")[-1]
    assert message.startswith("switch-distill: ") and len(message) < 700
    return message


@pytest.mark.parametrize("line", CASES)
def test_wrong_input_gives_one_line_and_changes_nothing(line, place, run):
    words, variables, text = place.command(line)
    before = place.state()
    code, said = run_apart(place, words, variables) if line.startswith("!") else run(words)
    assert text in check_message(code, said)
    assert place.state() == before


def test_a_metric_whose_library_is_missing_is_refused_before_anything_is_written(place, run, monkeypatch):
    real, config = importlib.util.find_spec, place.named("task")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *of: None if name == "sacrebleu" else real(name, *of))
    before = place.state()
    message = check_message(*run(["run", str(config), "--set=task.metrics=[exact_match, chrf]"]))
    assert message.endswith("metric chrf needs sacrebleu; install it: pip install 'switch-distill[metrics]'")
    assert place.state() == before


def load_baseline(source: str) -> object:
    config = Values(baseline=Values(checkpoint=source, d_ff=None), teacher=Values(checkpoints={}))
    return baseline._model(Values(config=config, data=Values(special_tokens=Values(vocabulary_size=1)), inputs={}))


# A line with "pretrained" refuses a combination of settings, not a model.
_OF_MODELS = "\n".join(line for line in CASES if "pretrained" not in line)
MODELS = re.findall(r"--set (teacher\.checkpoints\.e2|baseline\.checkpoint)=([^'\s]+) ==>", _OF_MODELS)
LOADERS = {"teacher.checkpoints.e2": [load_teacher, init_student], "baseline.checkpoint": [load_baseline]}


@pytest.mark.parametrize("key,model", sorted(set(MODELS)))
def test_the_python_functions_raise_the_same_message(key, model, place, run):
    names = string.Template(model).get_identifiers()
    source = string.Template(model).substitute({name: str(place.named(name)) for name in names})
    config = place.named("loaded" if key.startswith("teacher") else "base")
    message = check_message(*run(["run", str(config), f"--set={key}={source}"])).removeprefix("switch-distill: ")
    for load in LOADERS[key]:
        # These messages compare the model with others, which the function does not know.
        if re.search(r"the tokenizer|different tokenizers|tokenizer\.json|differ in", message):
            load(source)
            continue
        # By default, init_student reads no experts.
        options = {"ffn_init": "mean"} if load is init_student and "NaN or infinite" in message else {}
        with pytest.raises(UserError) as refused:
            load(source, **options)
        assert str(refused.value) == message


def plain(kind: typing.Any) -> typing.Any:
    return typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind


def wrong_values(model: type[BaseModel], prefix: str = "") -> typing.Iterator[tuple[str, str]]:
    """For every key of a config, values of wrong types and out of range."""
    for name, field in model.model_fields.items():
        key, kind = f"{prefix}{name}", field.annotation
        union = typing.get_origin(kind) in (types.UnionType, typing.Union)
        options = [plain(one) for one in (typing.get_args(kind) if union else (kind,))]
        values = ["{a: 1}", "[[1]]", "2024-01-01"]
        if sections := [one for one in options if isinstance(one, type) and issubclass(one, BaseModel)]:
            yield from wrong_values(sections[0], f"{key}.")
            values = ["text", "3", "[]", *([] if union else ["null"])]
        elif int in options:
            values += ["text", "1.5", "'1'", "-1", "true", "9" * 30, "0x" + "f" * 40, ".nan"]
        elif float in options:
            values += ["text", "'0.5'", ".nan", ".inf", "-.inf", "-1", "1e999", "9" * 400, "true"]
        elif str in options or typing.get_origin(kind) is typing.Literal:
            values += ["1", "1.5", "true", "[a]"]
        elif kind is bool:
            values += ["text", "1", "null", "'true'"]
        else:
            values = ["text", "1", "1.5", "true", "null", "2024-01-01"]
        yield from ((key, value) for value in values)
        yield f"{key}x", "1"


@pytest.mark.parametrize("key,value", list(wrong_values(RunConfig)))
def test_a_wrong_value_is_named_with_its_key(key, value, place, run):
    message = check_message(*run(["config", "text", f"--set={key}={value}"]))
    assert key.split(".")[-1] in message


def test_the_list_is_long():
    assert len(CASES) + len(list(wrong_values(RunConfig))) >= 300
