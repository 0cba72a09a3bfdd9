"""Memory that this process can still use. Imports no torch."""

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

_LEAST_RESERVE = 2 * 10**9  # bytes
# Name of the controller in /proc/self/cgroup (version 2 has none) -> directory of its groups, and the names of limit,
# usage and reclaimable page cache.
_CGROUPS = {
    "": ("", "memory.max", "memory.current", "inactive_file"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def memory_limit() -> int:
    """Bytes that a process may plan to use: what is available, less a reserve, shared by the processes of this machine.

    The reserve is a fifth of it and at least 2 GB, but at most a half.
    """
    available = available_memory()
    reserve = min(max(available // 5, _LEAST_RESERVE), available // 2)
    return (available - reserve) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def available_memory(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that are free on this machine, or until the limit of a control group that this process belongs to.

    Args:
        proc: the file that names the control groups.
        root: where they are mounted.
    """
    return min([psutil.virtual_memory().available, *_left_in_groups(proc, root)])


def _left_in_groups(proc: Path, root: Path) -> Iterator[int]:
    lines = proc.read_text().splitlines() if proc.is_file() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in set(controllers.split(",")) & _CGROUPS.keys():
            mount, limit, usage, cache = _CGROUPS[controller]
            group = root / mount / path.lstrip("/")
            # The limits of all groups above count too. In a container, the path is one of the host, and only the root
            # exists.
            for directory in (group, *group.parents):
                if directory.is_relative_to(root / mount) and (directory / limit).is_file():
                    yield from _left_in_group(directory, limit, usage, cache)


def _left_in_group(directory: Path, limit: str, usage: str, cache: str) -> Iterator[int]:
    most = (directory / limit).read_text().strip()
    if most == "max":
        return
    used = int((directory / usage).read_text())
    for line in (directory / "memory.stat").read_text().splitlines():
        name, _, value = line.partition(" ")
        used -= int(value) if name == cache else 0
    yield max(int(most) - used, 0)
