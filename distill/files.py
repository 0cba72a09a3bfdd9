"""Files appear whole or not at all: written beside, then renamed."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill.errors import UserError


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path`` so that a reader, or a killed writer, never leaves half of it."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Like ``Path.write_text``, whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(beside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def read_json(path: Path, cure: str) -> Any:
    """The value in a JSON file.

    Raises:
        UserError: it cannot be read or is no JSON; ``cure`` says what to do about it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {cure}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON; {cure}") from error


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory to fill, which becomes ``path`` when the block ends well and is removed when it does not.

    Where ``path`` exists, its files of the same names are replaced one by one and all others stay. Directories above
    it that had to be made are removed with it.

    Raises:
        UserError: it cannot be made there.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    made = [parent for parent in beside.parents if not parent.exists()]
    make_directory(beside)
    try:
        yield beside
        for file in beside.rglob("*"):
            if file.is_file():
                file.chmod(0o644)  # safetensors writes 0600, which another user cannot serve
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
        if not path.exists():
            beside.rename(path)
            return
        for file in [file for file in beside.rglob("*") if file.is_file()]:
            target = path / file.relative_to(beside)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):  # it is not empty
                parent.rmdir()


def make_directory(path: Path) -> None:
    """``path`` and those above it, as far as they are missing.

    Raises:
        UserError: a file is in the way, or it may not be written there.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{path.parent} cannot be written to ({error.strerror}); choose another place, or make room for it"
        ) from error
