"""The check that all values are finite, compared with torch, and its results, which later processes find."""

import hashlib
import os
import shutil

import pytest
import torch
from safetensors.torch import save_file

from distill.models import verify as verify_module
from distill.models.stored_tensors import read_headers
from distill.models.verify import Verified, cache_directory, verify
from tests.hub import new_python

NAN, INF = float("nan"), float("inf")
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def check(directory) -> Verified:
    [path] = directory.glob("*model*")
    verify_module._remembered.cache_clear()
    return verify(path, read_headers(directory, "it"), "it")


def write(directory, kind: str, tensors: dict[str, torch.Tensor]):
    directory.mkdir(exist_ok=True)
    if kind == "bin":
        torch.save(tensors, directory / "pytorch_model.bin")
    else:
        save_file(tensors, directory / "model.safetensors")
    return directory


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_one_value_is_found_wherever_it_is(tmp_path, kind, dtype, value):
    for number, (name, place) in enumerate((name, place) for name in "zma" for place in (0, 10, 20)):
        tensors = {name: torch.ones(3, 7, dtype=dtype) for name in "zma"}
        tensors[name].view(-1)[place] = value
        assert check(write(tmp_path / str(number), kind, tensors)).not_finite == name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_large_values_are_finite(tmp_path, kind, dtype):
    """Even if their sum is not."""
    largest = torch.finfo(dtype).max
    tensors = {"a": torch.full((100, 10), largest, dtype=dtype), "b": torch.full((9,), -largest, dtype=dtype)}
    tensors["b"][0] = torch.finfo(dtype).tiny / 2
    directory = write(tmp_path / "it", kind, {**tensors, "empty": torch.empty(0, 2), "scalar": torch.tensor(1.0)})
    [path] = directory.iterdir()
    assert check(directory) == (hashlib.sha256(path.read_bytes()).hexdigest(), None)


@pytest.mark.parametrize("block", [1, 8, 64, 2**25])
def test_the_size_of_a_block_does_not_matter(tmp_path, monkeypatch, block):
    monkeypatch.setattr(verify_module, "_AT_ONCE", block * 8)
    for value, expected in ((1.0, None), (NAN, "b")):
        tensors = {"a": torch.ones(33), "b": torch.full((17,), 1.0), "c": torch.ones(5, dtype=torch.float64)}
        tensors["b"][-1] = value
        found = check(write(tmp_path / str(value), "bin", tensors))
        assert found.not_finite == expected
        assert found.sha256 == hashlib.sha256((tmp_path / str(value) / "pytorch_model.bin").read_bytes()).hexdigest()


VIEWS = {
    "rows after a shared start": lambda table: {"a": table[:5], "b": table[3:9]},
    "the same rows": lambda table: {"a": table[:9], "b": table[:9]},
    "a longer one that sorts later": lambda table: {"a": table[0, :2], "b": table[:9]},
    "one within another": lambda table: {"a": table[:9], "b": table[4:5]},
    "transposed": lambda table: {"a": table[:2], "b": table.t()},
    "columns": lambda table: {"a": table[:, 3:5], "b": table[:, 0:1]},
    "every third": lambda table: {"a": table.view(-1)[::3], "b": table.view(-1)[1::3]},
}

STRIDED = ("columns", "every third")


@pytest.mark.parametrize("views", VIEWS)
def test_views_of_one_storage_are_checked_as_torch_checks_them(tmp_path, views):
    """For a value at every place. Values between those of a strided tensor count as its own."""
    for place in range(40):
        table = torch.ones(10, 8)
        table.view(-1)[2 * place] = NAN
        tensors = VIEWS[views](table)
        expected = any(not tensor.isfinite().all() for tensor in tensors.values())
        found = check(write(tmp_path / str(place), "bin", tensors)).not_finite
        assert (found is not None) == expected or (found and views in STRIDED), place


def test_bytes_between_tensors_are_no_values(tmp_path):
    """The header of a file, names of records and checksums may look like NaN."""
    torch.save({f"{name}\xff\xff": torch.ones(3) for name in "abcdefgh"}, tmp_path / "pytorch_model.bin")
    assert check(tmp_path).not_finite is None


_AGAIN = """
import sys
from pathlib import Path
from distill.models import verify
from distill.models.stored_tensors import read_headers
def read(*_):
    sys.exit("the file has been read again")
verify._read = read
path = Path(sys.argv[1])
print(verify.verify(path, read_headers(path.parent, "it"), "it"), "torch" in sys.modules)
"""


def test_a_later_process_does_not_read_the_file_again(tmp_path):
    for name, value in (("good", 1.0), ("bad", NAN)):
        directory = write(tmp_path / name, "safetensors", {"a": torch.full((5,), value)})
        found = check(directory)
        assert new_python(_AGAIN, str(directory / "model.safetensors")).strip() == f"{found} False"


def test_the_same_process_does_not_read_the_file_again(tmp_path, monkeypatch):
    directory = write(tmp_path / "it", "bin", {"a": torch.ones(5)})
    first = check(directory)
    monkeypatch.setattr(verify_module, "_read", lambda *_: pytest.fail("the file has been read again"))
    assert verify(directory / "pytorch_model.bin", {}, "it") == first


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_changed_file_of_the_same_size_is_read_again(tmp_path, kind):
    directory = write(tmp_path / "it", kind, {"a": torch.ones(5)})
    good = check(directory)
    [path] = directory.iterdir()
    before = path.stat()
    [other] = write(tmp_path / "other", kind, {"a": torch.full((5,), NAN)}).iterdir()
    path.write_bytes(other.read_bytes())
    assert (path.stat().st_size, path.stat().st_ino) == (before.st_size, before.st_ino)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    bad = check(directory)
    assert good.not_finite is None and bad.not_finite == "a" and bad.sha256 != good.sha256


def test_another_file_in_its_place_is_read_again(tmp_path):
    """Even one with the same size and time."""
    directory = write(tmp_path / "it", "safetensors", {"a": torch.ones(5)})
    assert check(directory).not_finite is None
    other = write(tmp_path / "other", "safetensors", {"a": torch.full((5,), NAN)}) / "model.safetensors"
    shutil.copystat(directory / "model.safetensors", other)
    other.replace(directory / "model.safetensors")
    assert check(directory).not_finite == "a"


@pytest.mark.parametrize(
    "damage", ["", "[]", "{", "{}", '{"file": 3}', '{"file": "x", "sha256": "y", "not_finite": "z"}', b"\xff\xfe", None]
)
def test_a_damaged_entry_is_harmless(tmp_path, damage):
    directory = write(tmp_path / "it", "safetensors", {"a": torch.full((5,), NAN)})
    found = check(directory)
    [entry] = cache_directory().iterdir()
    entry.unlink()
    if damage is None:
        entry.mkdir()
    else:
        entry.write_bytes(damage if isinstance(damage, bytes) else damage.encode())
    assert check(directory) == found and found.not_finite == "a"


@pytest.mark.parametrize("place", ["/proc/nothing", "/dev/null"])
def test_a_cache_that_cannot_be_written_is_harmless(tmp_path, monkeypatch, place):
    monkeypatch.setenv("XDG_CACHE_HOME", place)
    directory = write(tmp_path / "it", "safetensors", {"a": torch.full((5,), NAN)})
    assert check(directory).not_finite == check(directory).not_finite == "a"


def test_a_cache_on_a_full_disk_is_harmless(tmp_path, monkeypatch, small_disk):
    disk = small_disk(8192)
    monkeypatch.setenv("XDG_CACHE_HOME", str(disk))
    with pytest.raises(OSError):
        (disk / "full").write_bytes(b"0" * 2**14)
    directory = write(tmp_path / "it", "safetensors", {"a": torch.full((5,), NAN)})
    assert check(directory).not_finite == "a"


def test_without_a_home_directory_nothing_is_remembered(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError("no home directory")))
    assert check(write(tmp_path / "it", "safetensors", {"a": torch.ones(5)})).not_finite is None
