"""Read the values of tensors from a model's weight files, each directly into its place in memory."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from distill.models.pickled import DTYPES
from distill.models.weight_files import BYTES, StoredTensor, StoredTensors

# Reads the bytes of a file from an offset on into a buffer and fills it.
ReadAt = Callable[[int, memoryview], None]
_AT_ONCE = 2**30  # bytes; one call of the system reads at most 2 GiB


class TensorReader:
    """Reads tensors by name. Memory is needed for the tensor that is read, never for its file.

    Several threads may read at the same time.

    Attributes:
        tensors: all tensors of the model.
        bytes_read: number of bytes read until now.
    """

    def __init__(self, tensors: StoredTensors, files: Mapping[str, ReadAt]):
        """``files`` has a function for each file that ``tensors`` names."""
        self.tensors, self._files = tensors, files
        self.bytes_read = 0

    @classmethod
    def of_directory(cls, directory: Path, tensors: StoredTensors) -> "TensorReader":
        """A reader of the files in ``directory``."""
        return cls(tensors, {name: local_file(directory / name) for name in {one.file for one in tensors.values()}})

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor in its file."""
        return DTYPES[self.tensors[name].dtype]

    def read(self, name: str) -> torch.Tensor:
        """A tensor in its own dtype, on the CPU."""
        target = torch.empty(self.tensors[name].shape, dtype=self.dtype(name))
        self.read_into(name, target)
        return target

    def read_into(self, name: str, target: torch.Tensor) -> None:
        """Read a tensor into ``target``, which has its shape and may have another dtype or device."""
        tensor = self.tensors[name]
        assert tensor.shape == tuple(target.shape), f"{name} has shape {tensor.shape}, not {tuple(target.shape)}"
        if tensor.stride is None and target.dtype == DTYPES[tensor.dtype] and _is_plain(target):
            self._fill(tensor, target)
            return
        values = torch.empty(tensor.extent // BYTES[tensor.dtype], dtype=DTYPES[tensor.dtype])
        self._fill(tensor, values)
        if tensor.stride is not None:
            values = values.as_strided(tensor.shape, tensor.stride)
        with torch.no_grad():
            target.copy_(values.view(tensor.shape))

    def _fill(self, tensor: StoredTensor, target: torch.Tensor) -> None:
        buffer = memoryview(target.detach().flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]
        for start in range(0, len(buffer), _AT_ONCE):
            self._files[tensor.file](tensor.offset + start, buffer[start : start + _AT_ONCE])
        self.bytes_read += len(buffer)


def local_file(path: Path) -> ReadAt:
    """Reads a file on this machine without a memory map, whose pages would count as memory of the process."""

    def read_at(offset: int, buffer: memoryview) -> None:
        with open(path, "rb", buffering=0) as file:
            while buffer:
                read = os.preadv(file.fileno(), [buffer], offset)
                if not read:
                    raise OSError(f"{path} is shorter than its header says")
                buffer, offset = buffer[read:], offset + read

    return read_at


def _is_plain(target: torch.Tensor) -> bool:
    """Whether the memory of a tensor can be filled directly."""
    return target.device.type == "cpu" and target.is_contiguous()
