"""The headers of ``.bin`` files on the hub, which are zip archives of ``torch.save``. Imports no torch."""

import re
import struct
import zipfile
from collections.abc import Iterable

from distill.errors import UserError
from distill.io.hub_ranges import PartialFile, Range
from distill.models.weight_files import LARGEST_HEADER, damaged

_TAIL = 2**16  # bytes at the end of the file that are fetched first: the archive's directory, or the end of it
_STORAGE = re.compile(r"[^/]+/data/.+")
_ALIGNMENT = 64  # bytes; of archives that do not record theirs
_SIGNATURE = b"PK\x03\x04"
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, length of the name, length of the extra field


def fetch_zip_header(file: PartialFile, description: str) -> list[Range]:
    """Fetch all of a ``.bin`` file but the tensors' values, and complete its local copy so that torch can read it.

    The headers of the records are scattered between the values. They are computed by the rule of torch.save instead of
    fetched; ``check_zip_records`` compares them with the true ones when values are fetched.

    Args:
        file: the local copy.
        description: names the model in messages.

    Returns:
        For each record of values the first byte of its header and the first of its values, in order. Empty if the file
        is no zip archive; ``read_pickled_header`` of the copy then raises the error.

    Raises:
        UserError: the archive is damaged or torch.save has not written it; also as ``PartialFile.fetch``.
    """
    file.fetch([(0, min(len(_SIGNATURE), file.size)), (max(0, file.size - _TAIL), file.size)])
    try:
        with zipfile.ZipFile(file.as_stream(LARGEST_HEADER)) as archive:
            entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    except zipfile.BadZipFile:
        return []
    except (ValueError, OSError, struct.error, NotImplementedError) as error:
        raise damaged(description, file.name, error) from error
    storages = [entry for entry in entries if _STORAGE.fullmatch(entry.filename)]
    small = [entry for entry in entries if not _STORAGE.fullmatch(entry.filename)]
    if sum(max(entry.file_size, entry.compress_size) for entry in small) > LARGEST_HEADER:
        raise damaged(description, file.name, "its pickle is larger than that of any model")
    alignment = _alignment(file, small)
    starts = {entry.header_offset: _start(entry, alignment) for entry in entries}
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in storages) or any(
        starts[entry.header_offset] + entry.compress_size > file.size for entry in entries
    ):
        raise _not_of_torch(file, description)
    file.fetch((entry.header_offset, starts[entry.header_offset] + entry.compress_size) for entry in small)
    check_zip_records(file, ((entry.header_offset, starts[entry.header_offset]) for entry in small), description)
    for entry in storages:
        name, header = _name(entry), entry.header_offset
        padding = starts[header] - header - _LOCAL_HEADER.size - len(name)
        file.fill_hole(header, _LOCAL_HEADER.pack(_SIGNATURE, len(name), padding) + name)
    return [(entry.header_offset, starts[entry.header_offset]) for entry in storages]


def check_zip_records(file: PartialFile, records: Iterable[Range], description: str) -> None:
    """Compare the true headers of records with ``records``, of ``fetch_zip_header``; fetch them if they are missing.

    Raises:
        UserError: the values of a record start elsewhere.
    """
    for header, start in records:
        signature, name, extra = _LOCAL_HEADER.unpack(file.read(header, header + _LOCAL_HEADER.size))
        if signature != _SIGNATURE or header + _LOCAL_HEADER.size + name + extra != start:
            raise _not_of_torch(file, description)


def record_start(header: int, name_length: int, size: int, alignment: int) -> int:
    """The first byte of a record's values in an archive of torch.save, as in ``getPadding`` of torch's writer.

    Args:
        header: the first byte of the record's header.
        name_length: of its whole name, in bytes.
        size: of its values, in bytes.
        alignment: of the first value, in bytes.
    """
    large = 2**32 - 1  # sizes and places from here on are in an extra field
    start = header + _LOCAL_HEADER.size + name_length + 4  # 4: the head of the extra field that is the padding
    if size >= large or header >= large:
        start += 4 + (16 if size >= large else 0) + (8 if header >= large else 0)
    return -(-start // alignment) * alignment


def _start(entry: zipfile.ZipInfo, alignment: int) -> int:
    return record_start(entry.header_offset, len(_name(entry)), entry.file_size, alignment)


def _name(entry: zipfile.ZipInfo) -> bytes:
    return entry.orig_filename.encode("utf-8" if entry.flag_bits & 0x800 else "cp437")


def _alignment(file: PartialFile, entries: list[zipfile.ZipInfo]) -> int:
    """What the archive says about the alignment of its values."""
    for entry in entries:
        if entry.filename.endswith("/.storage_alignment") and entry.file_size < 10:
            # Its own start is unknown without the alignment, but not the lengths in its header.
            first = entry.header_offset
            _, name, extra = _LOCAL_HEADER.unpack(file.read(first, first + _LOCAL_HEADER.size))
            start = first + _LOCAL_HEADER.size + name + extra
            value = file.read(start, start + entry.file_size)
            return int(value) if value.isdigit() and int(value) > 0 else _ALIGNMENT
    return _ALIGNMENT


def _not_of_torch(file: PartialFile, description: str) -> UserError:
    return UserError(
        f"{description} cannot be read in parts: {file.name} is no archive of torch.save, so the places of its tensors "
        f"are unknown; fetch all of it with: hf download {file.source.name} --revision {file.source.revision}"
    )
