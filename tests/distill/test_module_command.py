"""Modules of the project in new processes, started from directories with files of the same names."""

import subprocess
import sys

import pytest

from distill.module_command import module_command


@pytest.fixture
def user_directory(tmp_path):
    """A directory with modules that raise when they are imported."""
    (tmp_path / "user" / "pipelines").mkdir(parents=True)
    for name in ("pipelines/__init__", "distill", "students", "random", "typer"):
        (tmp_path / "user" / f"{name}.py").write_text("raise ImportError('a file of the user')\n")
    (tmp_path / "user" / "teachers").mkdir()  # a namespace package
    return tmp_path / "user"


def test_the_current_directory_is_not_imported_from(user_directory):
    command = module_command("pipelines.cli", "config", "smoke")
    done = subprocess.run(command, cwd=user_directory, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("name: smoke"), done.stderr


def test_the_module_comes_from_where_this_process_finds_it_and_gets_its_arguments(tmp_path, monkeypatch):
    """This also holds if a new Python would find another version, or PYTHONPATH cannot hold the directory's name."""
    for name, code in [("first: é'\"", "sys.exit(int(sys.argv[1]) + len(sys.argv[2]))"), ("second", "sys.exit(0)")]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "module_of_the_test.py").write_text(f"import sys\nif __name__ == '__main__': {code}\n")
    monkeypatch.chdir(tmp_path / "first: é'\"")
    monkeypatch.setattr(sys, "path", ["", *sys.path])  # "" is the current directory
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "second"))
    assert subprocess.run(module_command("module_of_the_test", "3", "$ '\""), cwd=tmp_path).returncode == 7
