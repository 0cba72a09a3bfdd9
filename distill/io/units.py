"""Numbered units of work that processes share through a directory, also processes of several machines.

The file of a unit is a function of the unit's number, so it has the same bytes from any process. A process claims a
unit with a lock of the operating system (``flock``) on the unit's claim file. The lock ends with the process, however
it ends, and then another process can claim the unit. The claim file of a finished unit has the SHA-256 of its file. The
digest is written and read under the lock, because a network file system may show other machines a new file later.

Several machines need a file system with locks: NFS 4, NFS 3 with its lock service, or a cluster file system that is
mounted with ``flock``. A machine that is lost keeps its locks until its lease ends (on NFS 4, about 90 seconds). If a
file system has only locks within each machine (NFS mounted with ``nolock``, most mounts of object stores), or a machine
loses the server for longer than its lease, two machines may compute the same unit. The bytes are still the same.
"""

import contextlib
import fcntl
import hashlib
import io
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distill.errors import UserError
from distill.io.files import make_directory, read_record, write_bytes, write_record
from distill.io.lock import exclusive_lock

_DIGEST = re.compile(rb"[0-9a-f]{64}")


class Units:
    """The units 0 to ``count`` - 1 of one piece of work. The content of a unit is a set of named arrays."""

    def __init__(self, directory: Path, count: int, facts: dict[str, Any]):
        """Open the directory, or create it. Units that are there with other ``facts`` are removed."""
        self.directory, self.count = directory, count
        self.done = set[int]()  # those that this process knows of
        self._held: dict[int, int] = {}  # number -> file descriptor of its claim
        make_directory(directory.parent)
        with exclusive_lock(directory, lambda by: None):
            if _facts(directory / "facts.json") != facts:
                shutil.rmtree(directory, ignore_errors=True)
                make_directory(directory)
                write_record(directory / "facts.json", {"facts": facts})

    def __enter__(self) -> "Units":
        return self

    def __exit__(self, *_: object) -> None:
        """Release the claims on unfinished units."""
        for number in list(self._held):
            self._release(number)

    def claim(self) -> int | None:
        """Claim the first unit that is neither finished nor claimed; None if there is none."""
        for number in range(self.count):
            if number not in self.done and number not in self._held and self._take(number):
                return number
        return None

    def finish(self, number: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Write the file of a claimed unit, then its digest, and release the claim.

        Raises:
            DiskFull: there is no space.
        """
        file = io.BytesIO()
        np.savez(file, **dict(arrays))  # type: ignore[arg-type]  # its other parameters are not names of arrays
        write_bytes(self._path(number), content := file.getvalue())
        claim = self._held[number]
        os.pwrite(claim, hashlib.sha256(content).hexdigest().encode(), 0)
        os.fsync(claim)
        self._release(number)
        self.done.add(number)

    def read(self, number: int) -> dict[str, np.ndarray] | None:
        """The arrays of a unit. None if it is not finished, or if its file is damaged or gone; then it can be claimed.

        Only one process at a time may call this for a unit that may be damaged.
        """
        with contextlib.suppress(FileNotFoundError):
            digest = self._claim_path(number).read_bytes()
            if not _DIGEST.fullmatch(digest):
                return None
            content = self._path(number).read_bytes()
            if hashlib.sha256(content).hexdigest().encode() == digest:
                self.done.add(number)
                with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                    return dict(arrays)
        self._claim_path(number).unlink(missing_ok=True)
        self.done.discard(number)
        return None

    def all_finished(self) -> bool:
        """Whether all units that this process knows of are finished and whole, and there are no others."""
        return len(self.done) == self.count and all([self.read(number) is not None for number in range(self.count)])

    def discard(self, number: int) -> None:
        """Remove the file of a unit that is not needed any more. The unit stays finished."""
        self._path(number).unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the directory, and its parent if that is empty: the work is finished."""
        shutil.rmtree(self.directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.directory.parent.rmdir()

    def _take(self, number: int) -> bool:
        """Claim a unit, unless another process has finished or claimed it, or the directory is gone."""
        try:
            claim = os.open(self._claim_path(number), os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # the work is finished, and the directory has been removed
            return False
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(claim)
            return False
        self._held[number] = claim
        if _DIGEST.fullmatch(os.pread(claim, 65, 0)):
            self._release(number)
            self.done.add(number)
            return False
        return True

    def _release(self, number: int) -> None:
        os.close(self._held.pop(number))  # this ends the lock

    def _path(self, number: int) -> Path:
        return self.directory / f"{number:08d}.npz"

    def _claim_path(self, number: int) -> Path:
        return self.directory / f"{number:08d}.claim"


def _facts(path: Path) -> dict[str, Any] | None:
    try:
        return read_record(path, "the units are made again")["facts"]
    except (UserError, KeyError):
        return None
