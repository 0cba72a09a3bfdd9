"""Space on disk: asked for before it is used, and named when it has run out."""

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from distill.errors import DiskFull

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# What libraries that are not written in Python say instead of an errno: safetensors and tokenizers, SQLite.
_FULL_MESSAGES = ("no space left on device", "disk quota exceeded", "database or disk is full")


def require_space(
    path: Path, needed: int, description: str, hint: str = "free some, or choose another --workdir"
) -> None:
    """Check that the file system of ``path``, which need not exist yet, has ``needed`` bytes left.

    Raises:
        DiskFull: it has not; ``description`` says in the message what needs them.
    """
    free = _free(path)
    if needed > free:
        raise DiskFull(
            f"{description} needs about {format_bytes(needed)} in {path}, where {format_bytes(free)} are left; {hint}"
        )


@contextlib.contextmanager
def disk_full_errors(path: Path, needed: int | None = None) -> Iterator[None]:
    """Say of whatever finds the disk full within the block that it was writing ``path``, of ``needed`` bytes.

    An error that knows its file names that one instead.

    Raises:
        DiskFull: in place of the exception.
    """
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:
        full = _find_full(error)
        if full is None:
            raise
        file = getattr(full, "filename2", None) or getattr(full, "filename", None) or path
        wants = f"it needs {format_bytes(needed)}, " if needed else ""
        raise DiskFull(
            f"{file} cannot be written, the disk is full: {wants}{format_bytes(_free(path))} are left; what was "
            "finished before is kept, free some space and give the same command again"
        ) from error


def is_full(error: BaseException | None) -> bool:
    """Whether ``error``, or one that it came from, says that a disk or a quota is full."""
    return _find_full(error) is not None


def format_bytes(count: int) -> str:
    """Bytes for people: ``3.1 MB``."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"


def _find_full(error: BaseException | None) -> BaseException | None:
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return error
        if any(says in str(error).lower() for says in _FULL_MESSAGES):
            return error
        error = error.__cause__ or error.__context__
    return None


def _free(path: Path) -> int:
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free
