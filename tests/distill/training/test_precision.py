from pathlib import Path

import pytest
import torch

from distill import processor
from distill.training import precision
from distill.training.precision import multiplies_bfloat16, resolve_precision


def test_what_is_asked_for_is_what_is_taken(monkeypatch):
    for fast, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(precision, "multiplies_bfloat16", lambda fast=fast: fast)
        assert resolve_precision("auto") == expected
        assert resolve_precision("float32") == "float32" and resolve_precision("bfloat16") == "bfloat16"


def test_this_machine_is_what_torch_says_of_it():
    multiplies_bfloat16.cache_clear()
    if not torch.cuda.is_available():
        known = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        assert multiplies_bfloat16() == known


@pytest.mark.parametrize(
    "flags,fast",
    [("fpu avx512f avx512_bf16", True), ("fpu amx_bf16 amx_tile", True), ("fpu avx2 avx512f", False), (None, None)],
)
def test_the_flags_of_the_processor_decide_where_there_is_no_gpu(flags, fast, tmp_path, monkeypatch):
    path = tmp_path / "cpuinfo"
    if flags is not None:
        path.write_text(f"processor\t: 0\nmodel name\t: some\nflags\t\t: {flags}\n\nprocessor\t: 1\n")
    monkeypatch.setattr(processor, "_CPUINFO", path)
    monkeypatch.setattr(precision, "_GPUS", (Path(tmp_path / "no-gpu"),))
    multiplies_bfloat16.cache_clear()
    try:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        asked = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        assert multiplies_bfloat16() == (asked if fast is None else fast)
    finally:
        multiplies_bfloat16.cache_clear()
