from types import SimpleNamespace

import pytest

from distill.io import memory
from distill.io.memory import available_memory, memory_limit

GB = 10**9


@pytest.fixture
def machine(monkeypatch):
    """A machine with 64 GB of free memory."""
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * GB))


def group(directory, limit, usage, cache, version=2):
    directory.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    (directory / names[0]).write_text(f"{limit}\n")
    (directory / names[1]).write_text(f"{usage}\n")
    (directory / "memory.stat").write_text(f"anon 5\n{names[2]} {cache}\n")


def test_a_machine_without_groups_has_its_free_memory(machine, tmp_path):
    assert available_memory(tmp_path / "missing", tmp_path) == 64 * GB


@pytest.mark.parametrize(
    "groups,free",
    [
        ({"": (20 * GB, 5 * GB, 2 * GB)}, 17),  # page cache that can be reclaimed does not count
        ({"": ("max", 5 * GB, 0)}, 64),
        ({"a/b": ("max", 0, 0), "a": (9 * GB, 3 * GB, 0)}, 6),  # the limit of a group above
        ({"a/b": (9 * GB, 12 * GB, 0)}, 0),  # a limit that was lowered later
        ({"": (80 * GB, 1, 0)}, 64),
    ],
)
def test_the_smallest_limit_of_all_groups_counts(machine, tmp_path, groups, free):
    (tmp_path / "cgroup").write_text("0::/a/b\n")
    for path, values in groups.items():
        group(tmp_path / "mounted" / path, *values)
    assert available_memory(tmp_path / "cgroup", tmp_path / "mounted") == free * GB


def test_groups_of_version_1(machine, tmp_path):
    (tmp_path / "cgroup").write_text("5:cpu,cpuacct:/x\n4:memory:/docker/f00\n0::/\n")
    group(tmp_path / "mounted" / "memory", 12 * GB, 6 * GB, 3 * GB, version=1)  # a container sees only the root
    assert available_memory(tmp_path / "cgroup", tmp_path / "mounted") == 9 * GB


@pytest.mark.parametrize("free,limit", [(64, 51.2), (10, 8), (5, 3), (3, 1.5), (0.2, 0.1)])
@pytest.mark.parametrize("processes", [1, 4])
def test_a_reserve_is_kept_and_the_rest_shared(monkeypatch, free, limit, processes):
    monkeypatch.setattr(memory, "available_memory", lambda: int(free * GB))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert memory_limit() == pytest.approx(limit * GB / processes)
