"""The name and the instructions of the CPU, as Linux lists them. Imports no torch."""

import platform
from pathlib import Path
from typing import NamedTuple

_CPUINFO = Path("/proc/cpuinfo")


class Processor(NamedTuple):
    """What the system says of the first CPU."""

    name: str  # of the model, or of the architecture where the system names no model
    instructions: frozenset[str] | None  # Linux's names, such as "avx2"; None: the system does not list them


def read_processor() -> Processor:
    """The CPU of this machine."""
    architecture = platform.processor() or platform.machine()
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        return Processor(architecture, None)
    values: dict[str, str] = {}
    for name, _, value in (line.partition(":") for line in lines):
        values.setdefault(name.strip(), value.strip())
    listed = values.get("flags", values.get("Features"))  # of x86, of ARM
    return Processor(values.get("model name", architecture), None if listed is None else frozenset(listed.split()))
