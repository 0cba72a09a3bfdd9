"""Parts of files on the Hugging Face hub: range requests into sparse local copies, each byte once. Imports no torch."""

import io
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Lock

from distill.errors import ExpectedError, UserError
from distill.io.disk import disk_full_errors
from distill.io.files import read_record, write_record
from distill.io.hub import HubSource
from distill.io.hub_answers import failure_reason
from distill.io.hub_files import unavailable

Range = tuple[int, int]  # the first byte, and the byte after the last

CONNECTIONS = 4
_GAP = 2**20  # bytes; ranges with a smaller gap are one request, because an answer takes as long as that many bytes
_REQUEST = 2**25  # largest size of a request in bytes
_RECORD_EVERY = 2**22  # bytes; a killed process loses at most these of each connection
_WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds before a request is tried again, since the last byte that arrived


class _Broken(Exception):
    """The connection has ended before all bytes were there; the message is the cause."""


class PartialFile:
    """A local copy of a model's file on the hub that has only some ranges of its bytes; the rest are holes.

    A record beside the copy has the ranges that are complete, so a later process continues where this one ends. Several
    threads may fetch at the same time.

    Attributes:
        path: of the copy. Its size is that of the whole file.
        name: of the file.
        size: in bytes.
        source: the model's name on the hub and its commit.
    """

    def __init__(self, source: HubSource, name: str, size: int, directory: Path, description: str):
        """Create the copy, or continue that of an earlier process.

        Args:
            source: the model's name on the hub and its commit.
            name: of the file.
            size: of the file in bytes.
            directory: of the copy.
            description: names the model in messages.
        """
        self.path, self.name, self.size = directory / name, name, size
        self.source, self._description = source, description
        self._record = directory / f"{name}.ranges.json"
        self._done: list[Range] = []
        self._lock = Lock()
        self.read_record()
        with disk_full_errors(self.path), open(self.path, "ab") as file:
            file.truncate(size)

    def read_record(self) -> None:
        """Look up what this or another process has fetched until now."""
        try:
            record = read_record(self._record, "")
        except UserError:  # missing or damaged
            return
        if record["size"] == self.size and self.path.is_file() and self.path.stat().st_size == self.size:
            self._done = [(first, end) for first, end in record["ranges"]]

    def missing(self, ranges: Iterable[Range]) -> list[Range]:
        """What the copy lacks of these ranges and of the small gaps between them."""
        return _without(_merged(ranges, _GAP), self._done)

    def fetch(self, ranges: Iterable[Range]) -> None:
        """Fetch what the copy lacks of these ranges; raises as ``fetch_ranges``."""
        fetch_ranges({self: list(ranges)})

    def read(self, start: int, end: int) -> bytes:
        """The bytes of a range, fetched if they are missing; raises as ``fetch_ranges``."""
        self.fetch([(start, end)])
        with open(self.path, "rb") as file:
            file.seek(start)
            return file.read(end - start)

    def fill_hole(self, start: int, content: bytes) -> None:
        """Write bytes into a range that has not been fetched. They are replaced when the range is fetched."""
        if _without([(start, start + len(content))], self._done):
            with disk_full_errors(self.path), open(self.path, "r+b") as file:
                file.seek(start)
                file.write(content)

    def as_stream(self, most: int) -> io.RawIOBase:
        """The file as a stream that fetches what is read. A single read of more than ``most`` bytes is a ValueError."""
        return _Stream(self, most)

    def unavailable(self) -> UserError:
        """The error of a file whose missing bytes cannot be fetched in offline mode."""
        return unavailable(self._description, self.name, self.source.revision or "")

    def fetch_piece(self, piece: Range, stop: Event, on_bytes: Callable[[int], None]) -> None:
        """Fetch one range with one request, or with more if the connection breaks; see ``fetch_ranges``."""
        (first, end), waits = piece, iter(_WAITS)
        with open(self.path, "r+b", buffering=0) as file:
            while first < end and not stop.is_set():
                begin, cause = first, "it sent nothing"
                try:
                    for reached in self._receive(file, first, end, on_bytes):
                        first = reached
                        if stop.is_set():
                            break
                except _Broken as broken:
                    cause = str(broken)
                if first > begin:
                    waits = iter(_WAITS)
                elif (wait := next(waits, None)) is None:
                    raise UserError(
                        f"{self._description} cannot be fetched: the connection to the hub broke off at byte {first} "
                        f"of {self.name} ({cause}); run the same command again, it continues there"
                    )
                else:
                    stop.wait(wait)

    def _receive(self, file: io.FileIO, first: int, end: int, on_bytes: Callable[[int], None]) -> Iterator[int]:
        """Write what one request returns, and record it. Yields the next missing byte each time some have arrived."""
        recorded = first
        try:
            for block in self._answer(first, end):
                with disk_full_errors(self.path):
                    _write_at(file, first, block)
                first += len(block)
                on_bytes(len(block))
                if first - recorded >= _RECORD_EVERY:
                    self._complete(file, (recorded, first))
                    recorded = first
                yield first
        finally:
            if first > recorded:
                self._complete(file, (recorded, first))

    def _answer(self, first: int, end: int) -> Iterator[bytes]:
        """The bytes that one request returns, possibly fewer than requested, never more."""
        from huggingface_hub import constants, errors, hf_hub_url
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            build_hf_headers,
            hf_raise_for_status,
            http_stream_backoff,
        )

        name, commit = self.source
        # The client of huggingface_hub removes the token when it follows a redirect to another host.
        headers = build_hf_headers(headers={"Range": f"bytes={first}-{end - 1}", "Accept-Encoding": "identity"})
        url, timeout = hf_hub_url(name, self.name, revision=commit), constants.HF_HUB_DOWNLOAD_TIMEOUT
        request = http_stream_backoff("GET", url, headers=headers, timeout=timeout, retry_on_exceptions=())
        try:
            with request as response:
                hf_raise_for_status(response)
                if response.status_code != 206 and (first, end) != (0, self.size):
                    raise UserError(
                        f"{self._description} cannot be read in parts: {constants.ENDPOINT} ignores range requests; "
                        f"fetch all of it with: hf download {name} --revision {commit}"
                    )
                expected = f"bytes {first}-{end - 1}/{self.size}"
                if response.status_code == 206 and response.headers.get("Content-Range") != expected:
                    raise _Broken(f"it sent {response.headers.get('Content-Range')!s:.60} instead of {expected}")
                for block in response.iter_raw():
                    yield block[: max(0, end - first)]
                    first += len(block)
        except (ExpectedError, _Broken):
            raise
        except errors.HfHubHTTPError as error:
            reason = failure_reason(error, commit or "", "model")
            raise UserError(f"{self._description} is not a directory, and {reason}") from error
        except Exception as error:  # of many kinds: no connection, no answer, a connection that breaks off
            raise _Broken(" ".join(str(error).split())[:100] or type(error).__name__) from error

    def _complete(self, file: io.FileIO, done: Range) -> None:
        os.fsync(file.fileno())  # the record must not be on the disk before the bytes are
        with self._lock:
            self._done = _merged([*self._done, done])
            write_record(self._record, {"size": self.size, "ranges": self._done})


def fetch_ranges(wanted: dict[PartialFile, list[Range]], on_bytes: Callable[[int], None] = lambda _: None) -> None:
    """Fetch what the local copies lack of these ranges, over several connections at a time.

    A connection that breaks off is opened again for the rest. All bytes that have arrived are kept if this fails.

    Args:
        wanted: the ranges of each file.
        on_bytes: is called with the number of bytes that have arrived since the last call, in any thread.

    Raises:
        HubFilesUnavailable: offline mode is set.
        UserError: the hub refuses the file, ignores range requests, or breaks off repeatedly.
        DiskFull: there is no space.
    """
    from huggingface_hub import is_offline_mode

    pieces = [(file, piece) for file, ranges in wanted.items() for piece in _split(file.missing(ranges))]
    if pieces and is_offline_mode():
        raise pieces[0][0].unavailable()
    if len(pieces) == 1:
        pieces[0][0].fetch_piece(pieces[0][1], Event(), on_bytes)
        return
    stop = Event()
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        try:
            for done in [pool.submit(file.fetch_piece, piece, stop, on_bytes) for file, piece in pieces]:
                done.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _Stream(io.RawIOBase):
    def __init__(self, file: PartialFile, most: int):
        self._file, self._most, self._position = file, most, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._file.size}[whence]
        if position < 0:
            raise OSError("a seek to before the first byte")
        self._position = position
        return position

    def tell(self) -> int:
        return self._position

    def read(self, count: int = -1) -> bytes:
        left = max(0, self._file.size - self._position)
        count = left if count < 0 else min(count, left)
        if count > self._most:
            raise ValueError(f"{count} bytes at once")
        content = self._file.read(self._position, self._position + count)
        self._position += count
        return content


def _write_at(file: io.FileIO, offset: int, block: bytes) -> None:
    while block:
        written = os.pwrite(file.fileno(), block, offset)
        block, offset = block[written:], offset + written


def _merged(ranges: Iterable[Range], gap: int = 0) -> list[Range]:
    """The ranges in order; those that overlap, touch or have a smaller gap are joined. Empty ranges are dropped."""
    merged: list[Range] = []
    for first, end in sorted(ranges):
        if first >= end:
            continue
        if merged and first <= merged[-1][1] + gap:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((first, end))
    return merged


def _without(ranges: list[Range], done: list[Range]) -> list[Range]:
    """The parts of ``ranges`` that are not in ``done``; both are the result of ``_merged``."""
    left: list[Range] = []
    for first, end in ranges:
        for start, stop in done:
            if stop > first and start < end:
                if start > first:
                    left.append((first, start))
                first = stop
        if first < end:
            left.append((first, end))
    return left


def _split(ranges: list[Range]) -> Iterator[Range]:
    for first, end in ranges:
        for start in range(first, end, _REQUEST):
            yield start, min(start + _REQUEST, end)
