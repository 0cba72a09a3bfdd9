"""What messages suggest reaches a program as it was meant."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from pipelines.deploy.serve import exported
from pipelines.workdir.commands import WORK, suggest

WORDS = ["plain", "sp ace", "it's", 'q"q', "$HOME", "`ls`", "a;b", "a&b", "a|b", "*", "~", "back\\slash", "new\nline"]
WORDS += ["é日本", "#h", "what?x=1", "my%20project", "!x", "", "(a)", "trailing "]


def words_of(line: str) -> list[str]:
    """What a shell makes of a suggested command."""
    line = line.replace("switch-distill", "switch_distill")
    shell = ["sh", "-c", f"switch_distill() {{ printf '%s\\0' \"$@\"; }}; {line}"]
    done = subprocess.run(shell, capture_output=True, check=True)
    return [os.fsdecode(word) for word in done.stdout.split(b"\0")[:-1]]


def test_a_shell_gives_back_what_was_quoted():
    for word in WORDS:
        assert words_of(suggest("lineage", word, workdir=Path(word))) == ["lineage", word, "--workdir", str(Path(word))]
    assert words_of(suggest("export", *WORDS)) == ["export", *WORDS]


def test_the_default_work_directory_is_not_named_and_what_needs_no_quotes_has_none():
    assert suggest("lineage", "models:/demo-student-e8/1", workdir=WORK) == (
        "switch-distill lineage models:/demo-student-e8/1"
    )
    assert suggest("ui", workdir=Path("work/best")) == "switch-distill ui --workdir work/best"


def test_a_path_that_begins_with_a_dash_is_no_option():
    assert suggest("lineage", Path("-x"), "--json", workdir=Path("-w")) == (
        "switch-distill lineage ./-x --json --workdir ./-w"
    )


def test_the_export_that_serve_suggests_can_be_given(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("pipelines.deploy.serve.export_in_process", lambda *_: 7)
    with pytest.raises(SystemExit), exported("models:/a/1", None, tmp_path / "it's", None, said.append):
        pass
    [command] = re.findall(r"to serve at once: (.*)\)$", said[0])
    assert words_of(command) == [
        *("export", "models:/a/1", "--format", "hf", "--output", "DIR", "--workdir", str(tmp_path / "it's"))
    ]
