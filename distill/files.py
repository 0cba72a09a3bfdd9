"""Files appear whole or not at all, written beside, then renamed; and what was written can be told from other bytes."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from distill.disk import named_when_full
from distill.errors import DiskFull, UserError


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path`` so that a reader, or a killed writer, never leaves half of it."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Like ``Path.write_text`` in UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Like ``Path.write_bytes``, whole or not at all.

    Raises:
        DiskFull: ``path`` is what it was before.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with named_when_full(path, len(content)):
        try:
            with open(beside, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


def write_record(path: Path, values: dict[str, Any]) -> None:
    """``write_json``, with a SHA-256 of ``values`` as their last key ``checksum``."""
    write_json(path, {**values, "checksum": _checksum(values)})


def read_record(path: Path, cure: str) -> dict[str, Any]:
    """What ``write_record`` wrote; of a file that carries no checksum, what is there.

    Raises:
        UserError: it is missing, no JSON or has other values than were written; ``cure`` ends the sentence.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        checksum = values.pop("checksum", None)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {cure}") from None
    except (ValueError, AttributeError):  # no UTF-8, no JSON, or no object
        raise UserError(f"{path} is damaged: it is not the JSON that was written; {cure}") from None
    if checksum not in (None, _checksum(values)):
        raise UserError(f"{path} is damaged: its checksum is not that of its values; {cure}")
    return values


def file_digest(path: Path) -> str:
    """SHA-256 in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digests(directory: Path, paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of files by their name within ``directory``."""
    return {path.relative_to(directory).as_posix(): file_digest(path) for path in sorted(paths) if path.is_file()}


def check_digests(directory: Path, digests: dict[str, str], cure: str) -> None:
    """Read the files of ``digests`` and compare.

    Raises:
        UserError: one is missing or has other bytes than were written; ``cure`` ends the sentence.
    """
    for name, expected in digests.items():
        try:
            found = file_digest(directory / name)
        except OSError as error:
            raise UserError(f"{directory / name} is missing ({error.strerror}); {cure}") from None
        if found != expected:
            raise UserError(
                f"{directory / name} is damaged: it has SHA-256 {found[:12]}..., not {expected[:12]}... as written; "
                f"{cure}"
            )


@contextlib.contextmanager
def new_directory(path: Path, needed: int | None = None) -> Iterator[Path]:
    """A directory to fill, which becomes ``path`` when the block ends well and is removed when it does not.

    Where ``path`` exists, its files of the same names are replaced one by one and all others stay. ``needed`` is the
    size of what will be in it in bytes, where that is known.

    Raises:
        DiskFull: ``path`` is what it was before.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        with named_when_full(path, needed):
            beside.mkdir(parents=True)
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
    except DiskFull as error:  # of a file that will be in ``path``
        raise DiskFull(str(error).replace(str(beside), str(path))) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextlib.contextmanager
def removed_if_unfinished(path: Path) -> Iterator[None]:
    """A file that a library makes within the block, and other files whose names begin as its does; not one from before.

    A database whose tables are not all there, because the disk was full, would never open again.
    """
    new = not path.exists()
    try:
        yield
    except BaseException:
        for file in path.parent.glob(f"{path.name}*") if new else ():
            file.unlink()
        raise


def _checksum(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
