"""The headers of ``.bin`` files, which ``torch.save`` writes: a zip archive of a pickle and the tensors' values.

Only ``torch.load`` with ``weights_only=True`` reads the pickle, so no code of the file is ever executed.
"""

import re
import struct
import zipfile
from pathlib import Path
from pickle import UnpicklingError

import torch

from distill.errors import UserError
from distill.models.weight_files import StoredTensor, StoredTensors, damaged, require_known_dtype

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# What torch.load raises for a damaged file, apart from UnpicklingError.
_DAMAGED = (AssertionError, AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError)
_LENGTHS = struct.Struct("<26xHH")  # of a record's name and extra field, in the header before its content


def read_pickled_header(path: Path, description: str) -> StoredTensors:
    """The tensors of a ``.bin`` file. Their values are not read.

    Args:
        path: of the file.
        description: names the model in messages.

    Raises:
        UserError: the file is damaged, is of torch before 1.6, is not packed as by torch.save, or holds more than named
            tensors.
    """
    with open(path, "rb") as file:
        start = file.read(4)
    if start[:1] == b"\x80":  # the first byte of a pickle
        raise UserError(
            f"{description} cannot be loaded: {path.name} has the format of torch before 1.6; convert it with: "
            f"torch.save(torch.load({path.name!r}, weights_only=True), {path.name!r})"
        )
    if start != b"PK\x03\x04":
        raise damaged(description, path.name, "it is no zip archive")
    records = _records(path, description)  # before torch.load, which would expand compressed ones
    try:
        # On "meta" no values are read. mmap=True would need as much memory as the file has bytes.
        loaded = torch.load(path, map_location="meta", weights_only=True, mmap=False)
    except UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)|(?:class|function|type|global)\S* ['\"<]*([\w.]+\.[\w.]+)", str(error))
        said = re.findall(r"WeightsUnpickler error:\s*(.+)", str(error)) or [str(error)]
        thing = next(filter(None, wanted.groups())) if wanted else " ".join(said[0].split())[:100]
        raise UserError(
            f"{description} cannot be loaded: {path.name} holds more than tensors ({thing}), which could run code; "
            "take the model from its authors as safetensors"
        ) from error
    except _DAMAGED as error:
        raise damaged(description, path.name, error) from error
    tensors = loaded.items() if isinstance(loaded, dict) else [("its content", loaded)]
    return {name: _stored(name, tensor, records, path, description) for name, tensor in tensors}


def _records(path: Path, description: str) -> dict[int, int]:
    """First byte -> number of bytes of the content of each record of an archive."""
    records = {}
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb", buffering=0) as file:
            for entry in archive.infolist():
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise _repacked(path, description)
                file.seek(entry.header_offset)
                header = file.read(_LENGTHS.size)
                records[entry.header_offset + len(header) + sum(_LENGTHS.unpack(header))] = entry.file_size
    except UserError:
        raise
    except (zipfile.BadZipFile, NotImplementedError, struct.error, *_DAMAGED) as error:
        raise damaged(description, path.name, error) from error
    return records


def _repacked(path: Path, description: str) -> UserError:
    return UserError(
        f"{description} cannot be loaded: {path.name} is not packed as torch.save packs it; save it again with: "
        f"torch.save(torch.load({path.name!r}, weights_only=True), {path.name!r})"
    )


def _stored(name: object, tensor: object, records: dict[int, int], path: Path, description: str) -> StoredTensor:
    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
        raise UserError(
            f"{description} cannot be loaded: {path.name} holds {name!s:.100} of type {type(tensor).__name__}, "
            "which is no named dense tensor; save only the state_dict"
        )
    dtype = _NAMES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
    require_known_dtype(name, dtype, description)
    storage = tensor.untyped_storage()
    start = storage._checkpoint_offset  # in the file; torch sets it if map_location is "meta"
    assert start is not None
    if storage.nbytes() and start not in records:  # torch computes the places by the rules of torch.save
        raise _repacked(path, description)
    if storage.nbytes() > records.get(start, 0):
        raise damaged(description, path.name, f"its tensor {name:.100} is cut off")
    offset = start + int(tensor.storage_offset()) * tensor.itemsize
    stride = None if tensor.is_contiguous() else tensor.stride()
    found = StoredTensor(path.name, dtype, tuple(tensor.shape), offset, stride)
    if found.offset + found.extent > start + storage.nbytes():
        raise damaged(description, path.name, f"its tensor {name:.100} is larger than its storage")
    return found
