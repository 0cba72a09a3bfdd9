"""Archives of torch.save: the places of records, compared with those that torch finds, also beyond 4 GB."""

import collections
import io
import pickle
import random
import struct
import zipfile
from pathlib import Path

import pytest
import torch

from distill.models.pickled import read_pickled_header
from distill.models.remote_zip import fetch_zip_header, record_start


@pytest.fixture
def torch_reader(tmp_path):
    torch.save({}, tmp_path / "empty.bin")
    return torch._C.PyTorchFileReader(str(tmp_path / "empty.bin"))


def test_records_start_where_torch_computes_it(torch_reader):
    rng = random.Random(0)
    edge = 2**32 - 1
    for _ in range(2000):
        header, size = (
            rng.choice([rng.randrange(2**14), edge + rng.randrange(-200, 200), rng.randrange(2**42)]) for _ in range(2)
        )
        name, alignment = f"data/{rng.randrange(10 ** rng.randrange(1, 6))}", rng.choice([1, 64, 128, 4096])
        expected = torch_reader.get_record_offset_no_read(header, name, size, alignment)
        assert record_start(header, len(f"empty/{name}"), size, alignment) == expected


class _Storage:
    def __init__(self, *saved: object):
        self.saved = saved


class _Tensor:
    def __init__(self, storage: _Storage, numel: int):
        self.storage, self.numel = storage, numel

    def __reduce__(self):
        arguments = (self.storage, 0, (self.numel,), (1,), False, collections.OrderedDict())
        return torch._utils._rebuild_tensor_v2, arguments


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: object) -> object:
        return ("storage", *value.saved) if isinstance(value, _Storage) else None


def large_archive(path: Path, numel: int) -> None:
    """An archive of torch.save of two float32 tensors of ``numel`` values, which are holes, and a small one."""
    pickled = io.BytesIO()
    small = _Tensor(_Storage(torch.BFloat16Storage, "2", "cpu", 7), 7)
    large = [_Tensor(_Storage(torch.FloatStorage, key, "cpu", numel), numel) for key in "01"]
    _Pickler(pickled, 2).dump({"a": large[0], "b": large[1], "c": small})
    records = {"x/data.pkl": pickled.getvalue(), "x/byteorder": b"little", "x/data/0": 4 * numel}
    records |= {"x/data/1": 4 * numel, "x/data/2": 14, "x/version": b"3\n"}
    end = 0
    with open(path, "wb") as file, zipfile.ZipFile(file, "w") as archive:
        for name, content in records.items():
            size = content if isinstance(content, int) else len(content)
            start = record_start(end, len(name), size, 64)
            file.seek(end)
            file.write(struct.pack("<4s22xHH", b"PK\x03\x04", len(name), start - end - 30 - len(name)) + name.encode())
            entry = zipfile.ZipInfo(name)
            entry.header_offset, entry.file_size, entry.compress_size = end, size, size
            entry.CRC = 0
            if isinstance(content, bytes):
                file.seek(start)
                file.write(content)
                entry.CRC = zipfile.crc32(content)
            archive.filelist.append(entry)
            end = start + size
        archive.start_dir, archive._didModify = end, True  # the archive writes its directory there


class _Copy:
    """Stands for a PartialFile: copies ranges of a file on this machine."""

    def __init__(self, source: Path, path: Path):
        self.original, self.path, self.name, self.size = source, path, path.name, source.stat().st_size
        self.fetched = 0
        with open(path, "wb") as file:
            file.truncate(self.size)

    def fetch(self, ranges) -> None:
        for first, end in ranges:
            self.fill_hole(first, self._original(first, end))
            self.fetched += end - first

    def read(self, first: int, end: int) -> bytes:
        self.fetch([(first, end)])
        return self._original(first, end)

    def fill_hole(self, start: int, content: bytes) -> None:
        with open(self.path, "r+b") as copy:
            copy.seek(start)
            copy.write(content)

    def _original(self, first: int, end: int) -> bytes:
        with open(self.original, "rb") as file:
            file.seek(first)
            return file.read(end - first)

    def as_stream(self, most: int):
        return open(self.original, "rb")


def test_an_archive_larger_than_memory_is_read_from_its_header(tmp_path):
    numel = 2**36  # 256 GiB for each tensor
    path = tmp_path / "pytorch_model.bin"
    large_archive(path, numel)
    expected = read_pickled_header(path, "it")
    assert {name: (tensor.dtype, tensor.numel) for name, tensor in expected.items()} == {
        "a": ("F32", numel),
        "b": ("F32", numel),
        "c": ("BF16", 7),
    }
    (tmp_path / "copy").mkdir()
    copy = _Copy(path, tmp_path / "copy" / path.name)
    records = fetch_zip_header(copy, "it")
    assert read_pickled_header(copy.path, "it") == expected and copy.fetched < 2**17
    assert [start for _, start in records] == [tensor.offset for tensor in expected.values()]
