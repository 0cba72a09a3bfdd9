"""Files appear whole or not at all: written beside, then renamed."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any


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


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory to fill, which becomes ``path`` when the block ends well and is removed when it does not.

    Where ``path`` exists, its files of the same names are replaced one by one and all others stay.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
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
