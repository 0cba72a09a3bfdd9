"""The SHA-256 of a weight file and whether its values are finite: one pass over the file, remembered for later runs.

Imports no torch.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from distill.io.files import write_json
from distill.models.weight_files import BYTES, StoredTensors, damaged

# dtypes of numpy. numpy has no bfloat16, whose bits are the upper half of a float32.
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_AT_ONCE = 2**25  # bytes


class Verified(NamedTuple):
    """The result of one pass over a weight file."""

    sha256: str  # hexadecimal
    not_finite: str | None  # the first tensor with a value that is NaN or infinite


def verify(path: Path, tensors: StoredTensors, description: str) -> Verified:
    """Read a weight file once, unless it has not changed since an earlier pass of any process.

    A file counts as unchanged if its path, size, times and inode are those of the earlier pass. Programs can set the
    time of modification, but not that of the last change of the inode.

    Args:
        path: of the file.
        tensors: all tensors of the model; those of other files are ignored.
        description: names the model in messages.

    Raises:
        UserError: the file cannot be read to its end.
    """
    stat = path.stat()
    key = json.dumps([str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino])
    return _remembered(key) or _remember(key, _read(path, tensors, description))


def cache_directory() -> Path:
    """Where results are remembered: ``switch-distill`` in the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "switch-distill" / "verified"


@lru_cache(maxsize=10_000)
def _remembered(key: str) -> Verified | None:
    try:
        known = json.loads(_path(key).read_text())
        return Verified(known["sha256"], known["not_finite"]) if known["file"] == key else None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):  # no home directory raises RuntimeError
        return None


def _remember(key: str, found: Verified) -> Verified:
    try:
        _path(key).parent.mkdir(parents=True, exist_ok=True)
        write_json(_path(key), {"file": key, **found._asdict()})
    except (OSError, RuntimeError):  # without a place to remember it, the next command reads the file again
        return found
    _remembered.cache_clear()
    return found


def _path(key: str) -> Path:
    return cache_directory() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def _read(path: Path, tensors: StoredTensors, description: str) -> Verified:
    sha, not_finite = hashlib.sha256(), None
    with open(path, "rb") as file, ThreadPoolExecutor(1) as other:
        hashed = other.submit(sha.update, b"")
        for name, dtype, length in _parts(tensors, path.name, path.stat().st_size):
            block = file.read(length)
            if len(block) != length:
                raise damaged(description, path.name, "it is shorter than before")
            hashed.result()
            hashed = other.submit(sha.update, block)
            if dtype and not_finite is None and not _is_finite(block, dtype):
                not_finite = name
        hashed.result()
    return Verified(sha.hexdigest(), not_finite)


def _parts(tensors: StoredTensors, file: str, size: int) -> Iterator[tuple[str, str, int]]:
    """Name, dtype and length of each part of a file, in order. Bytes between tensors have no dtype."""
    end = 0
    ordered = sorted((one.offset, name) for name, one in tensors.items() if one.file == file)
    for offset, name in ordered:
        width, last = BYTES[tensors[name].dtype], offset + tensors[name].extent
        start = max(offset, offset + -(-(end - offset) // width) * width)  # views may share bytes
        if start >= last:
            continue
        yield from (("", "", length) for length in _lengths(start - end))
        yield from ((name, tensors[name].dtype, length) for length in _lengths(last - start))
        end = last
    yield from (("", "", length) for length in _lengths(size - end))


def _lengths(total: int) -> Iterator[int]:
    for start in range(0, total, _AT_ONCE):
        yield min(_AT_ONCE, total - start)


def _is_finite(block: bytes, dtype: str) -> bool:
    values = np.frombuffer(block, _NUMPY[dtype])
    if dtype == "BF16":
        return bool(((values & 0x7F80) != 0x7F80).all())
    # Twice as fast as isfinite on every value: a sum is finite unless a value is not, or the sum overflows.
    with np.errstate(all="ignore"):
        return bool(np.isfinite(values.sum()) or np.isfinite(values).all())
