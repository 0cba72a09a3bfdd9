"""A distilled student, and its exports."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def student(smoke) -> Path:
    """The directory of the stage that distilled it."""
    return next((smoke[0] / "stages").glob("distill-e4-*"))


@pytest.fixture(scope="session")
def export(smoke, student, cli, tmp_path_factory):
    """Export the student once in each format that is asked for."""
    done = {}

    def make(format: str, precision: str) -> Path:
        if (format, precision) not in done:
            target = tmp_path_factory.mktemp("exports") / f"{format}-{precision}"
            options = ["--format", format, "--precision", precision, "--output", str(target)]
            made = cli("export", str(student), *options, "--workdir", str(smoke[0]))
            assert made.returncode == 0, made.stderr
            done[format, precision] = target
        return done[format, precision]

    return make
