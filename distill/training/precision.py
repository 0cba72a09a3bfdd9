"""The precision that "auto" selects on this machine.

A run's plan depends on it, so machines without a GPU determine it without importing torch.
"""

from functools import cache
from pathlib import Path
from typing import Literal

Precision = Literal["bfloat16", "float32"]

_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}  # Linux's names of the instructions that multiply bfloat16
# One of these exists on every machine where CUDA or ROCm may find a GPU: Linux, WSL, Jetson, AMD.
_GPUS = tuple(map(Path, ("/dev/nvidiactl", "/dev/dxg", "/dev/nvmap", "/dev/kfd")))


def resolve_precision(asked: Literal["auto", "bfloat16", "float32"]) -> Precision:
    """``asked``; for "auto", bfloat16 if the device has instructions for it, otherwise float32."""
    if asked != "auto":
        return asked
    return "bfloat16" if multiplies_bfloat16() else "float32"


@cache
def multiplies_bfloat16() -> bool:
    """Whether the GPU, or without one the CPU, has instructions that multiply bfloat16."""
    flags = _processor_flags(Path("/proc/cpuinfo"))
    if flags is not None and not may_have_gpu():
        return bool(_BFLOAT16_FLAGS & flags)
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def may_have_gpu() -> bool:
    """Whether CUDA or ROCm may find a GPU on this machine; only torch knows."""
    return any(path.exists() for path in _GPUS)


def _processor_flags(path: Path) -> set[str] | None:
    """The flags of the CPU; None if the system does not list them."""
    if not path.is_file():
        return None
    for line in path.read_text().splitlines():
        name, _, values = line.partition(":")
        if name.strip() == "flags":
            return set(values.split())
    return set()
