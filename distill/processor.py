"""The name and the instructions of the CPU, as Linux lists them. Imports no torch."""

from pathlib import Path
from typing import NamedTuple

_CPUINFO = Path("/proc/cpuinfo")


class Processor(NamedTuple):
    """What the system says of the first CPU."""

    name: str | None  # None: it has no name there
    instructions: frozenset[str] | None  # Linux's names, such as "avx2"; None: the system does not list them


def read_processor() -> Processor:
    """The CPU of this machine; both values are None on a system without /proc/cpuinfo."""
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        return Processor(None, None)
    values: dict[str, str] = {}
    for name, _, value in (line.partition(":") for line in lines):
        values.setdefault(name.strip(), value.strip())
    listed = values.get("flags", values.get("Features"))  # of x86, of ARM
    return Processor(values.get("model name"), None if listed is None else frozenset(listed.split()))
