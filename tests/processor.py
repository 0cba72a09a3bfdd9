"""What this processor can compute, for tests of int8."""

import platform

from distill.processor import read_processor


def multiplies_int8() -> bool:
    """Whether the CPU has instructions that add int8 products in 32 bits."""
    known = read_processor().instructions
    return platform.machine() != "x86_64" or known is None or bool({"avx512_vnni", "avx_vnni"} & known)
