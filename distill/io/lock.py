"""A lock between processes. It belongs to the operating system, which releases it when a process is killed."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from distill.errors import UserError
from distill.io.files import make_directory


@contextlib.contextmanager
def exclusive_lock(path: Path, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of ``path`` within the block. Only one process of this machine holds it at a time.

    Args:
        path: need not exist; the lock file is beside it.
        on_wait: is called before a wait with the name of the holder ("process 1234"). It may raise instead of waiting.

    Raises:
        UserError: the lock file cannot be created.
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
            file.unlink(missing_ok=True)  # before the release: waiting processes detect this and create a new file
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
        raise UserError(f"{file.parent} cannot be written to ({error.strerror}); choose another directory") from error
    with contextlib.suppress(OSError):  # of a full disk; the number only serves messages
        file.write_text(str(os.getpid()))
