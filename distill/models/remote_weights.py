"""The weights of a model on the Hugging Face hub without a download of its files: the headers, and single tensors.

Headers and tensors are fetched by range requests into sparse copies of the files in the user's cache, each byte once.
So a command that was killed goes on where it was, and one without a connection finds what was fetched before. Imports
torch only for ``.bin`` files and to read values.
"""

import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from rich.filesize import decimal

from distill.errors import UserError
from distill.io.disk import require_space
from distill.io.files import read_record, write_record
from distill.io.hub import HubSource, at_revision
from distill.io.hub_answers import announce_wait, say
from distill.io.hub_files import DISK_HINT, sizes_on_hub
from distill.io.hub_ranges import CONNECTIONS, PartialFile, Range, fetch_ranges
from distill.io.lock import exclusive_lock
from distill.models.remote_zip import check_zip_records, fetch_zip_header
from distill.models.stored_tensors import read_headers
from distill.models.weight_files import (
    INDEXES,
    LARGEST_HEADER,
    SINGLE_FILES,
    StoredTensors,
    WeightFiles,
    damaged,
    read_weight_index,
)

if TYPE_CHECKING:
    from distill.models.read_tensors import TensorReader

_FIRST = 2**18  # bytes of a safetensors file that are fetched first; most headers are shorter
_MESSAGE_SECONDS = 30.0  # between messages about the progress


@dataclass
class RemoteWeights:
    """The weights of a model on the hub, of which only the headers are fetched until tensors are asked for.

    Attributes:
        source: the name on the hub and the commit.
        tensors: all tensors of the model.
        sizes: bytes of each weight file, by name.
    """

    source: HubSource
    tensors: StoredTensors
    sizes: dict[str, int]
    _description: str
    _files: dict[str, PartialFile]
    _records: dict[str, list[Range]]  # of each .bin file: see fetch_zip_header
    _directory: Path

    @property
    def total_bytes(self) -> int:
        """Size of all weight files."""
        return sum(self.sizes.values())

    def missing_bytes(self, names: Iterable[str]) -> int:
        """The number of bytes that ``prefetch`` of these tensors would fetch."""
        wanted = self._ranges(names)
        return sum(end - first for file, ranges in wanted.items() for first, end in file.missing(ranges))

    def prefetch(self, names: Iterable[str], what: str) -> None:
        """Fetch these tensors into the cache, several at a time. What an earlier command has fetched is not repeated.

        Args:
            names: of the tensors.
            what: names them in messages, such as "its non-expert tensors".

        Raises:
            HubFilesUnavailable: tensors are missing, and offline mode is set.
            UserError: the hub refuses a file, ignores range requests, or breaks off repeatedly, or a file is damaged.
            DiskFull: there is no space.
        """
        names = list(names)
        with _locked(self._directory, self.source.name):
            for file in self._files.values():
                file.read_record()  # another process may have fetched them meanwhile
            if missing := self.missing_bytes(names):
                name = self.source.name
                require_space(self._directory, missing, f"fetching {what} of {name}", DISK_HINT)
                size, all_of_it = decimal(missing), decimal(self.total_bytes)
                with announce_wait(f"Fetching {size} of the {all_of_it} of {name} ({what})"):
                    fetch_ranges(self._ranges(names), _Progress(missing, name).add)
        self._check_records(names)

    def reader(self) -> "TensorReader":
        """A reader of the tensors. It fetches one that is missing when it is read; ``prefetch`` is faster for many.

        ``read`` and ``read_into`` raise as ``prefetch``.
        """
        from distill.models.read_tensors import ReadAt, TensorReader, local_file  # imports torch

        def read_at(file: PartialFile) -> ReadAt:
            from_copy = local_file(file.path)

            def fetch_and_read(offset: int, buffer: memoryview) -> None:
                records = self._records_of(file.name, offset)
                file.fetch([(offset, offset + len(buffer)), *records])
                check_zip_records(file, records, self._description)
                from_copy(offset, buffer)

            return fetch_and_read

        return TensorReader(self.tensors, {name: read_at(file) for name, file in self._files.items()})

    def _ranges(self, names: Iterable[str]) -> dict[PartialFile, list[Range]]:
        wanted: dict[PartialFile, list[Range]] = defaultdict(list)
        for name in names:
            tensor = self.tensors[name]
            wanted[self._files[tensor.file]] += [
                (tensor.offset, tensor.offset + tensor.extent),
                *self._records_of(tensor.file, tensor.offset),
            ]
        return wanted

    def _check_records(self, names: Iterable[str]) -> None:
        for name in names:
            tensor = self.tensors[name]
            records = self._records_of(tensor.file, tensor.offset)
            check_zip_records(self._files[tensor.file], records, self._description)

    def _records_of(self, file: str, offset: int) -> list[Range]:
        """The header of the record with the values at ``offset``, in a ``.bin`` file; otherwise nothing."""
        records = self._records[file]
        number = bisect_right(records, offset, key=lambda record: record[1])
        return records[number - 1 : number] if number else []


def remote_tensors(source: str, description: str) -> RemoteWeights | None:
    """The tensors of a model on the hub, from the headers of its weight files, which alone are fetched.

    Safetensors take precedence over ``.bin`` files.

    Args:
        source: a directory, or a name on the hub that may be pinned (``NAME@REVISION``).
        description: names the model in messages.

    Returns:
        None for a local directory.

    Raises:
        HubFilesUnavailable: the hub does not answer, and the headers have not been fetched before.
        UserError: the source or its weights do not exist, a file is damaged or holds more than tensors, or the hub
            ignores range requests.
        DiskFull: there is no space for the headers.
    """
    name, commit = at_revision(source, "model", description)
    if commit is None:
        return None
    directory, at = _cache_directory(name, commit), HubSource(name, commit)
    with (
        _locked(directory, name),
        announce_wait(f"Waiting for the hub to send the headers of the weights of {name} (Ctrl-C stops waiting)"),
    ):
        sizes = _sizes(directory, at, description)

        def open_file(file: str) -> PartialFile:
            return PartialFile(at, file, sizes[file], directory, description)

        weights = _weight_files(directory, sizes, open_file, description)
        files = {file: open_file(file) for file in weights.names}
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            records = dict(
                zip(files, pool.map(lambda file: _fetch_header(file, description), files.values()), strict=True)
            )
        tensors = read_headers(directory, description)
    return RemoteWeights(at, tensors, {file: sizes[file] for file in files}, description, files, records, directory)


def _sizes(directory: Path, source: HubSource, description: str) -> dict[str, int]:
    """The size of each file of the commit; asked for once."""
    path = directory / "sizes.json"
    try:
        return read_record(path, "")["sizes"]
    except UserError:  # missing or damaged
        sizes = sizes_on_hub(source.name, source.revision or "", description, SINGLE_FILES[0])
        write_record(path, {"sizes": sizes})
        return sizes


def _weight_files(
    directory: Path, sizes: dict[str, int], open_file: Callable[[str], PartialFile], description: str
) -> WeightFiles:
    """The names of the weight files on the hub; as ``find_weight_files`` for a directory."""
    for single, index in zip(SINGLE_FILES, INDEXES, strict=True):
        if single in sizes:
            return WeightFiles([single])
        if index in sizes:
            if sizes[index] > LARGEST_HEADER:
                raise damaged(description, index, f"it has {sizes[index]} bytes")
            open_file(index).fetch([(0, sizes[index])])
            files = read_weight_index(directory / index, description)
            if missing := [name for name in files.names if name not in sizes]:
                raise UserError(
                    f"{description} cannot be loaded: {index} names {missing[0]:.80}, which is not on the hub; "
                    "name another model"
                )
            return files
    raise UserError(f"{description} has neither {' nor '.join(SINGLE_FILES)} on the hub; name another model")


def _fetch_header(file: PartialFile, description: str) -> list[Range]:
    if file.path.suffix == ".bin":
        return fetch_zip_header(file, description)
    length = int.from_bytes(file.read(0, min(_FIRST, file.size))[:8], "little")
    file.fetch([(0, min(8 + length, file.size, 8 + LARGEST_HEADER))])
    return []


def _cache_directory(name: str, commit: str) -> Path:
    """Where the copies are: beside the hub's cache, in the place of huggingface_hub for other programs."""
    from huggingface_hub import cached_assets_path, constants

    root = constants.HF_ASSETS_CACHE
    try:
        return cached_assets_path("switch-distill", namespace=name, subfolder=commit, assets_dir=root)
    except (OSError, ValueError) as error:
        raise UserError(f"{root} cannot be written to ({error}); set HF_HOME to another directory") from error


def _locked(directory: Path, name: str) -> AbstractContextManager[None]:
    return exclusive_lock(directory, lambda holder: say(f"Waiting for {holder}, which fetches parts of {name}"))


class _Progress:
    """Says from time to time how much has arrived."""

    def __init__(self, total: int, name: str):
        self._total, self._name = total, name
        self._done, self._said, self._lock = 0, time.monotonic(), Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            if time.monotonic() - self._said >= _MESSAGE_SECONDS:
                self._said = time.monotonic()
                say(f"{decimal(self._done)} of {decimal(self._total)} of {self._name} have arrived")
