"""Atomic writes (to a temporary file, which is then renamed), and checksums that detect damaged files."""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from distill.errors import DiskFull, UserError
from distill.io.disk import disk_full_errors


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path`` as JSON, atomically.

    Raises:
        DiskFull: there is no space; ``path`` is unchanged.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` in UTF-8, atomically; raises as ``write_bytes``."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically: a killed process never leaves a part of it.

    Raises:
        DiskFull: there is no space; ``path`` is unchanged.
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
        UserError: the file is missing, cannot be read, or is not JSON; ``hint`` is the end of the message.
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
    """Write ``values`` as JSON, atomically, with their SHA-256 under an additional last key ``checksum``."""
    write_json(path, {**values, "checksum": _checksum(values)})


def read_record(path: Path, hint: str) -> dict[str, Any]:
    """The values that ``write_record`` has written.

    Raises:
        UserError: as for ``read_json``, or the values do not match their checksum.
    """
    values = read_json(path, hint)
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged: it is not a JSON object; {hint}")
    if values.pop("checksum", None) != _checksum(values):
        raise UserError(f"{path} is damaged: its values do not match its checksum; {hint}")
    return values


def file_digest(path: Path) -> str:
    """SHA-256 in hexadecimal. A process reads a file again only if its size, time or inode has changed."""
    stat = path.stat()
    return _digest(path.absolute(), stat.st_size, stat.st_mtime_ns, stat.st_ino)


@lru_cache(maxsize=10_000)
def _digest(path: Path, *_: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def directory_digest(directory: Path) -> str:
    """SHA-256 of the names and contents of all files of a directory, cut to 32 hexadecimal digits."""
    total = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        total.update(path.relative_to(directory).as_posix().encode() + bytes.fromhex(file_digest(path)))
    return total.hexdigest()[:32]


def file_digests(directory: Path, paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of each file, by its path relative to ``directory``. Paths that are not files are skipped."""
    return {path.relative_to(directory).as_posix(): file_digest(path) for path in sorted(paths) if path.is_file()}


def check_digests(directory: Path, digests: dict[str, str], hint: str) -> None:
    """Compare the SHA-256 of files in ``directory`` with ``digests`` (relative path -> SHA-256).

    Raises:
        UserError: a file is missing or damaged, or its path leads outside ``directory``; ``hint`` is the end of the
            message.
    """
    for name, expected in digests.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"the record in {directory} names {name!r:.80}, which is outside this directory; {hint}")
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
    """Yield a temporary directory, which becomes ``path`` if the block succeeds and is removed if it fails.

    If ``path`` exists, files of the same names are replaced one by one and all others remain. Missing parents are
    created, and are removed again if the block fails.

    Args:
        path: the new directory.
        needed: size of its content in bytes, if it is known.

    Raises:
        UserError: the directory cannot be created.
        DiskFull: there is no space; ``path`` is unchanged.
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
                    file.chmod(0o644)  # safetensors writes 0600, which other users cannot read
                    with open(file, "rb") as handle:
                        os.fsync(handle.fileno())
            if not path.exists():
                tmp_dir.rename(path)
                return
            for file in [file for file in tmp_dir.rglob("*") if file.is_file()]:
                target = path / file.relative_to(tmp_dir)
                target.parent.mkdir(parents=True, exist_ok=True)
                file.replace(target)
    except DiskFull as error:  # name the file by its final path
        raise DiskFull(str(error).replace(str(tmp_dir), str(path))) from error
    finally:
        shutil.rmtree(tmp_dir, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):  # it is not empty
                parent.rmdir()


def remove_temporary(directory: Path) -> None:
    """Remove temporary files and directories of killed processes. No other process may be writing to ``directory``."""
    for path in directory.glob(".*"):
        if not re.fullmatch(r"\..+\.[0-9]+", path.name):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def directory_uri(path: Path) -> str:
    """The ``file://`` URI of a directory, with all special characters escaped.

    It ends with a slash. MLflow takes the text after the last slash as a file name, and rejects ``#`` in it.
    """
    return f"{path.absolute().as_uri()}/"


def make_directory(path: Path) -> None:
    """Create ``path`` and its missing parents.

    Raises:
        UserError: a file has this path, or there is no permission to write.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{path.parent} cannot be written to ({error.strerror}); choose another directory, or make it writable"
        ) from error


def _checksum(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
