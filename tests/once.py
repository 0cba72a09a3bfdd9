"""Directories that are expensive to make, made once for all workers of a test run."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def shared_directory(factory: pytest.TempPathFactory) -> Path:
    """The directory of all workers of pytest-xdist, in the temporary directory of the test run."""
    own = factory.getbasetemp()
    shared = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    shared.mkdir(exist_ok=True)
    return shared


def once(directory: Path, make: Callable[[Path], object]) -> Path:
    """Let ``make`` fill a new directory, unless a process has filled it. Other processes wait meanwhile."""
    finished = directory.with_name(f"{directory.name}.finished")
    with FileLock(f"{directory}.lock"):
        if not finished.exists():
            shutil.rmtree(directory, ignore_errors=True)  # of a process whose ``make`` has failed
            directory.mkdir()
            make(directory)
            finished.touch()
    return directory
