"""What this processor can compute, for tests of int8."""

import platform
from pathlib import Path

from distill.training.precision import _processor_flags


def multiplies_int8() -> bool:
    """Whether the CPU has instructions that add int8 products in 32 bits."""
    flags = _processor_flags(Path("/proc/cpuinfo"))
    return platform.machine() != "x86_64" or flags is None or bool({"avx512_vnni", "avx_vnni"} & flags)
