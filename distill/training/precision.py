"""The precision that "auto" selects on this machine.

A run's plan depends on it, so machines without a GPU determine it without importing torch.
"""

from functools import cache
from pathlib import Path
from typing import Literal

from distill.processor import read_processor

Precision = Literal["bfloat16", "float32"]

_BFLOAT16 = {"avx512_bf16", "amx_bf16"}  # Linux's names of the instructions of x86 that multiply bfloat16
# One of these exists on every machine where CUDA or ROCm may find a GPU: Linux, WSL, Jetson, AMD.
_GPUS = tuple(map(Path, ("/dev/nvidiactl", "/dev/dxg", "/dev/nvmap", "/dev/kfd")))


def resolve_precision(asked: Literal["auto", "bfloat16", "float32"]) -> Precision:
    """``asked``; for "auto", bfloat16 if the device has instructions for it, otherwise float32."""
    if asked != "auto":
        return asked
    return "bfloat16" if multiplies_bfloat16() else "float32"


@cache
def multiplies_bfloat16() -> bool:
    """Whether the GPU, or without one the x86 CPU, has instructions that multiply bfloat16."""
    instructions = read_processor().instructions
    if instructions is not None and not may_have_gpu():
        return bool(_BFLOAT16 & instructions)
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def may_have_gpu() -> bool:
    """Whether CUDA or ROCm may find a GPU on this machine; only torch knows."""
    return any(path.exists() for path in _GPUS)
