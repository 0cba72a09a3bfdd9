"""The shell passes a suggested command to the program with the intended arguments."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from pipelines.deploy.serve import exported_model
from pipelines.workdir.commands import WORK, suggest

WORDS = ["plain", "sp ace", "it's", 'q"q', "$HOME", "`ls`", "a;b", "a&b", "a|b", "*", "~", "back\\slash", "new\nline"]
WORDS += ["é日本", "#h", "what?x=1", "my%20project", "!x", "", "(a)", "trailing "]


def words_of(line: str) -> list[str]:
    """The arguments that a shell passes for a suggested command."""
    line = line.replace("switch-distill", "switch_distill")
    shell = ["sh", "-c", f"switch_distill() {{ printf '%s\\0' \"$@\"; }}; {line}"]
    done = subprocess.run(shell, capture_output=True, check=True)
    return [os.fsdecode(word) for word in done.stdout.split(b"\0")[:-1]]


def test_a_shell_restores_quoted_words():
    for word in WORDS:
        assert words_of(suggest("lineage", word, workdir=Path(word))) == ["lineage", word, "--workdir", str(Path(word))]
    assert words_of(suggest("export", *WORDS)) == ["export", *WORDS]


def test_the_default_work_directory_and_needless_quotes_are_omitted():
    assert suggest("lineage", "models:/text-student-e8/1", workdir=WORK) == (
        "switch-distill lineage models:/text-student-e8/1"
    )
    assert suggest("ui", workdir=Path("work/best")) == "switch-distill ui --workdir work/best"


def test_a_path_that_starts_with_a_dash_is_not_an_option():
    assert suggest("lineage", Path("-x"), "--json", workdir=Path("-w")) == (
        "switch-distill lineage ./-x --json --workdir ./-w"
    )


def test_the_export_command_that_serve_suggests_works(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("pipelines.deploy.serve.export_in_process", lambda *_: 7)
    with pytest.raises(SystemExit), exported_model("models:/a/1", None, tmp_path / "it's", None, said.append):
        pass
    [command] = re.findall(r"to keep the export: (.*)\)$", said[0])
    assert words_of(command) == [
        *("export", "models:/a/1", "--format", "hf", "--output", "DIR", "--workdir", str(tmp_path / "it's"))
    ]
