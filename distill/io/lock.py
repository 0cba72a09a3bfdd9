"""One process at a time. The lock is the operating system's, so that a killed process leaves none behind."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from distill.errors import UserError
from distill.io.files import make_directory


@contextlib.contextmanager
def exclusive_lock(path: Path, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Enter the block once no other process of this machine is in it for the same ``path``, which need not exist.

    Args:
        on_wait: is told who is in it ("process 1234") before the wait; it may raise instead of waiting.

    Raises:
        UserError: there is no place for the lock beside ``path``.
    """
    made = [parent for parent in path.parents if not parent.exists()]
    make_directory(path.parent)
    file = path.with_name(f".{path.name}.lock")
    lock = FileLock(file)
    try:
        _acquire(lock, file, on_wait)
        yield
    finally:
        if lock.is_locked:
            file.unlink(missing_ok=True)  # before the release: whoever waits for it sees that and makes another
            lock.release()
        for parent in made:
            with contextlib.suppress(OSError):  # it is not empty
                parent.rmdir()


def _acquire(lock: FileLock, file: Path, on_wait: Callable[[str], None]) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        number = file.read_text() if file.exists() else ""
        on_wait(f"process {number}" if number else "another process")
        lock.acquire(poll_interval=0.5)
    except OSError as error:
        raise UserError(f"{file.parent} cannot be written to ({error.strerror}); choose another place") from error
    with contextlib.suppress(OSError):  # a full disk; the number is for people
        file.write_text(str(os.getpid()))
