"""Disk space: checks before writing, and errors of a full disk."""

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from rich.filesize import decimal

from distill.errors import DiskFull

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Messages of libraries that do not set an errno: safetensors and tokenizers, SQLite.
_FULL_MESSAGES = ("no space left on device", "disk quota exceeded", "database or disk is full")


def require_space(
    path: Path, needed: int, description: str, hint: str = "free some, or choose another --workdir"
) -> None:
    """Check that the file system of ``path`` has ``needed`` bytes left.

    Args:
        path: need not exist yet.
        needed: bytes.
        description: names the work that needs the space, for the message.
        hint: the end of the message.

    Raises:
        DiskFull: it has fewer.
    """
    free = _free(path)
    if needed > free:
        raise DiskFull(f"{description} needs about {decimal(needed)} in {path}, which has {decimal(free)} left; {hint}")


@contextlib.contextmanager
def disk_full_errors(path: Path, needed: int | None = None) -> Iterator[None]:
    """Convert errors of a full disk within the block to DiskFull.

    Args:
        path: named in the message, unless the error names its own file.
        needed: size of ``path`` in bytes, if it is known.

    Raises:
        DiskFull: the block raised an error that comes from a full disk or quota.
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
        size = f"it needs {decimal(needed)}, " if needed else ""
        raise DiskFull(
            f"{file} cannot be written, the disk is full: {size}{decimal(_free(path))} are left; "
            "finished work is kept; free some space and run the same command again"
        ) from error


def is_full(error: BaseException | None) -> bool:
    """Whether ``error``, or one of its causes, reports a full disk or quota."""
    return _find_full(error) is not None


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
