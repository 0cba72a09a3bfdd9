"""A distilled student, and its exports."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def exporting(smoke, tmp_path_factory) -> Path:
    """A copy of the finished smoke run, whose exports other tests do not see."""
    copy = tmp_path_factory.mktemp("exporting") / "work"
    shutil.copytree(smoke[0], copy)
    return copy


@pytest.fixture(scope="session")
def distilled(exporting) -> Path:
    """The directory of the stage that distilled the student of e4."""
    return next((exporting / "stages").glob("distill-e4-*"))


@pytest.fixture(scope="session")
def export(exporting, distilled, cli, tmp_path_factory):
    """Export the student once in each format and precision that is asked for."""
    done = {}

    def make(format: str, precision: str) -> Path:
        if (format, precision) not in done:
            target = tmp_path_factory.mktemp("exports") / f"{format}-{precision}"
            options = ["--format", format, "--precision", precision, "--output", str(target)]
            made = cli("export", str(distilled), *options, "--workdir", str(exporting))
            assert made.returncode == 0, made.stderr
            done[format, precision] = target
        return done[format, precision]

    return make
