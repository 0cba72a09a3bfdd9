import platform

import pytest

from distill import processor
from distill.processor import read_processor

X86 = "processor\t: 0\nmodel name\t: One CPU: fast\nflags\t\t: fpu avx2\n\nprocessor\t: 1\nmodel name\t: other\n"
ARCHITECTURE = platform.processor() or platform.machine()
ARM = "processor\t: 0\nFeatures\t: fp asimd bf16\n"


@pytest.mark.parametrize(
    "text,expected",
    [
        (X86, ("One CPU: fast", {"fpu", "avx2"})),
        (ARM, (ARCHITECTURE, {"fp", "asimd", "bf16"})),
        ("", (ARCHITECTURE, None)),
        (None, (ARCHITECTURE, None)),
    ],
)
def test_the_first_cpu_of_the_list_is_read(text, expected, tmp_path, monkeypatch):
    path = tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(processor, "_CPUINFO", path)
    assert read_processor() == expected


@pytest.mark.skipif(
    platform.system() != "Linux" or platform.machine() != "x86_64", reason="only Linux on x86 lists these instructions"
)
def test_this_machine_has_a_name_and_instructions():
    found = read_processor()
    assert found.name != ARCHITECTURE and {"fpu", "sse2"} <= (found.instructions or set())
