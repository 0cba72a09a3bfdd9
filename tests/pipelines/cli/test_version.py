import importlib.metadata
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pipelines.cli import app

ROOT = Path(__file__).parents[3]


def test_the_version_is_that_of_the_project_and_needs_no_torch():
    expected = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    code = "import sys; from pipelines.cli.app import _main; sys.exit(_main() or 'torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, "--version"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"switch-distill {expected}\n", "")


def test_a_clone_that_is_not_installed_says_that_it_has_no_version(monkeypatch, capsys):
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    monkeypatch.setattr(sys, "argv", ["switch-distill", "--version"])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr("gc.set_threshold", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "switch-distill: a clone that is not installed has no version; install it: pip install -e .\n"
    )
