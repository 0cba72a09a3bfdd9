"""The tensors of a model's weight files, from their headers: safetensors, or ``.bin`` files of ``torch.save``.

Imports torch only for ``.bin`` files.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from distill.errors import UserError
from distill.io.files import read_json

SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")  # the first that exists is read
INDEXES = tuple(f"{name}.index.json" for name in SINGLE_FILES)
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # dtype, in the words of safetensors -> bytes per value
LARGEST_HEADER = 100_000_000  # bytes, as in the safetensors library


class StoredTensor(NamedTuple):
    """A tensor in a file."""

    file: str
    dtype: str  # a key of BYTES
    shape: tuple[int, ...]
    offset: int  # of its first byte in the file
    stride: tuple[int, ...] | None = None  # in values; None: contiguous

    @property
    def numel(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def extent(self) -> int:
        """Bytes from its first value to its last."""
        if self.stride is None or not self.numel:
            return self.numel * BYTES[self.dtype]
        last = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        return (last + 1) * BYTES[self.dtype]


StoredTensors = dict[str, StoredTensor]


class WeightFiles(NamedTuple):
    """The files of a model's weights."""

    names: list[str]
    index_name: str | None = None
    parts: dict[str, str] | None = None  # tensor -> file, from the index


def find_weight_files(directory: Path, description: str) -> WeightFiles:
    """The weight files of a directory. Safetensors take precedence over ``.bin`` files.

    Args:
        directory: of the model.
        description: names the model in messages.

    Raises:
        UserError: there are none, or an index names files that are not there.
    """
    for single, index in zip(SINGLE_FILES, INDEXES, strict=True):
        if (directory / single).is_file():
            return WeightFiles([single])
        if (directory / index).is_file():
            files = read_weight_index(directory / index, description)
            for name in files.names:
                if not os.path.isfile(directory / name):  # Path.is_file raises OSError if the name is too long
                    raise UserError(
                        f"{description} cannot be loaded: {index} names {name!r:.80}, which is not a file beside it"
                    )
            return files
    raise UserError(
        f"{description} cannot be loaded: it has neither {' nor '.join(SINGLE_FILES)}; "
        "save it there with save_pretrained"
    )


def read_weight_index(path: Path, description: str) -> WeightFiles:
    """The files that an index such as ``model.safetensors.index.json`` names. They need not exist.

    Raises:
        UserError: the index is damaged, names no files, or names files elsewhere or of another format.
    """
    known, ending = read_json(path, "copy or save the model again"), path.suffixes[-3]
    parts = known.get("weight_map") if isinstance(known, dict) else None
    if not isinstance(parts, dict) or not parts or not all(isinstance(name, str) for name in parts.values()):
        raise UserError(f"{description} cannot be loaded: {path.name} names no files; copy or save the model again")
    for name in sorted(set(parts.values())):
        if Path(name).name != name or Path(name).suffix != ending:
            raise UserError(
                f"{description} cannot be loaded: {path.name} names {name!r:.80}, not a {ending} file beside it"
            )
    return WeightFiles(sorted(set(parts.values())), path.name, parts)


def merge_headers(files: WeightFiles, headers: Mapping[str, StoredTensors], description: str) -> StoredTensors:
    """All tensors of several files, after a comparison with the index.

    Args:
        files: the result of ``find_weight_files``.
        headers: the tensors of each file.
        description: names the model in messages.

    Raises:
        UserError: two files hold the same tensor, or the files do not hold the tensors that the index names.
    """
    tensors: StoredTensors = {}
    for name, header in headers.items():
        if both := sorted(set(tensors) & set(header)):
            raise UserError(
                f"{description} cannot be loaded: {tensors[both[0]].file} and {name} both hold {both[0]:.100}; "
                "copy or save the model again"
            )
        tensors |= header
    for tensor, name in (files.parts or {}).items():
        if tensor not in tensors or tensors[tensor].file != name:
            found = f"{tensors[tensor].file} holds it" if tensor in tensors else "no file holds it"
            raise UserError(
                f"{description} cannot be loaded: {files.index_name} names {name} for {tensor:.100}, but {found}; "
                "copy or save the model again"
            )
    return tensors


def read_safetensors_header(file: BinaryIO, size: int, name: str, description: str) -> StoredTensors:
    """The tensors of a safetensors file, whose header is its start.

    Args:
        file: is read from its start.
        size: of the file in bytes.
        name: of the file.
        description: names the model in messages.

    Raises:
        UserError: the header does not describe the file, or a tensor has an unknown dtype.
    """
    try:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, LARGEST_HEADER):
            raise ValueError("its header does not fit into it")
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        tensors = {key: _stored(key, value, name, 8 + length, description) for key, value in header.items()}
        end = 8 + length
        for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.extent)):
            if tensor.offset != end:
                raise ValueError("its tensors are not one after another")
            end += tensor.extent
        if end != size:
            raise ValueError(f"it has {size} bytes, its header says {end}")
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise damaged(description, name, error) from error
    return tensors


def damaged(description: str, file: str, error: object) -> UserError:
    """The error of a file that cannot be read."""
    cause = " ".join(str(error).split())[:200]
    return UserError(f"{description} cannot be loaded: {file} is damaged ({cause}); copy it again")


def require_known_dtype(name: str, dtype: str, description: str) -> None:
    """Raise UserError unless ``dtype`` of tensor ``name`` is a key of ``BYTES``."""
    if dtype not in BYTES:
        raise UserError(f"{description} has {name:.100} in {dtype:.20}; save it in float32 or bfloat16")


def _stored(name: str, value: dict[str, Any], file: str, start: int, description: str) -> StoredTensor:
    dtype, shape, (first, last) = str(value["dtype"]), tuple(value["shape"]), value["data_offsets"]
    if not re.fullmatch(r"[A-Z0-9_]+", dtype) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"its tensor {name:.100} has no valid dtype and shape")
    require_known_dtype(name, dtype, description)
    tensor = StoredTensor(file, dtype, shape, start + first)
    if type(first) is not int or first < 0 or last - first != tensor.extent:
        raise ValueError(f"its tensor {name:.100} has another size than its shape")
    return tensor
