"""Files appear whole or not at all, written beside, then renamed; and what was written can be told from other bytes."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from distill.errors import DiskFull, UserError
from distill.io.disk import disk_full_errors


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
    tmp_file = path.with_name(f".{path.name}.{os.getpid()}")
    with disk_full_errors(path, len(content)):
        try:
            with open(tmp_file, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            tmp_file.replace(path)
        except BaseException:
            tmp_file.unlink(missing_ok=True)
            raise


def read_json(path: Path, hint: str) -> Any:
    """The value in a JSON file.

    Raises:
        UserError: it cannot be read or is no JSON; ``hint`` says what to do about it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; {hint}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {hint}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: it is not JSON; {hint}") from error


def write_record(path: Path, values: dict[str, Any]) -> None:
    """``write_json``, with a SHA-256 of ``values`` as their last key ``checksum``."""
    write_json(path, {**values, "checksum": _checksum(values)})


def read_record(path: Path, hint: str) -> dict[str, Any]:
    """What ``write_record`` wrote.

    Raises:
        UserError: as ``read_json``, or it has other values than were written.
    """
    values = read_json(path, hint)
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged: it holds no keys and values; {hint}")
    if values.pop("checksum", None) != _checksum(values):
        raise UserError(f"{path} is damaged: its checksum is not that of its values; {hint}")
    return values


def file_digest(path: Path) -> str:
    """SHA-256 in hexadecimal; a process reads a file once for it, as long as size and time stay what they are."""
    stat = path.stat()
    return _digest(path.absolute(), stat.st_size, stat.st_mtime_ns, stat.st_ino)


@lru_cache(maxsize=10_000)
def _digest(path: Path, *_: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def directory_digest(directory: Path) -> str:
    """SHA-256 over names and bytes of the files of a directory, cut to 32 hexadecimal digits."""
    total = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        total.update(path.relative_to(directory).as_posix().encode() + bytes.fromhex(file_digest(path)))
    return total.hexdigest()[:32]


def file_digests(directory: Path, paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of files by their name within ``directory``."""
    return {path.relative_to(directory).as_posix(): file_digest(path) for path in sorted(paths) if path.is_file()}


def check_digests(directory: Path, digests: dict[str, str], hint: str) -> None:
    """Read the files of ``digests`` and compare.

    Raises:
        UserError: one is missing, has other bytes than were written, or is named outside of ``directory``; ``hint``
            ends the sentence.
    """
    for name, expected in digests.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"the record in {directory} names {name!r:.80}, which is outside; {hint}")
        try:
            found = file_digest(directory / name)
        except OSError as error:
            raise UserError(f"{directory / name} is missing ({error.strerror}); {hint}") from None
        if found != expected:
            raise UserError(
                f"{directory / name} is damaged: it has SHA-256 {found[:12]}..., not {expected[:12]}... as written; "
                f"{hint}"
            )


@contextlib.contextmanager
def new_directory(path: Path, needed: int | None = None) -> Iterator[Path]:
    """A directory to fill, which becomes ``path`` when the block ends well and is removed when it does not.

    Where ``path`` exists, its files of the same names are replaced one by one and all others stay. Directories above
    it that had to be made are removed with it. ``needed`` is the size of what will be in it in bytes, where that is
    known.

    Raises:
        UserError: it cannot be made there.
        DiskFull: ``path`` is what it was before.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; name a directory")
    tmp_dir = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(tmp_dir, ignore_errors=True)
    made = [parent for parent in tmp_dir.parents if not parent.exists()]
    try:
        with disk_full_errors(path, needed):
            make_directory(tmp_dir)
            yield tmp_dir
            for file in tmp_dir.rglob("*"):
                if file.is_file():
                    file.chmod(0o644)  # safetensors writes 0600, which another user cannot serve
                    with open(file, "rb") as handle:
                        os.fsync(handle.fileno())
            if not path.exists():
                tmp_dir.rename(path)
                return
            for file in [file for file in tmp_dir.rglob("*") if file.is_file()]:
                target = path / file.relative_to(tmp_dir)
                target.parent.mkdir(parents=True, exist_ok=True)
                file.replace(target)
    except DiskFull as error:  # of a file that will be in ``path``
        raise DiskFull(str(error).replace(str(tmp_dir), str(path))) from error
    finally:
        shutil.rmtree(tmp_dir, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):  # it is not empty
                parent.rmdir()


def directory_uri(path: Path) -> str:
    """The ``file://`` URI of a directory, in which no character of its name is one of the URI's syntax.

    It ends in a slash: MLflow takes what stands after the last one for the name of a file, and refuses ``#`` there.
    """
    return f"{path.absolute().as_uri()}/"


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


def _checksum(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
