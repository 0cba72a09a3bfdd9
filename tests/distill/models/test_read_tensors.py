"""Values of tensors are read into any place, in any dtype, and no more bytes than theirs."""

import os

import pytest
import torch
from safetensors.torch import save_file

from distill.models import read_tensors
from distill.models.read_tensors import TensorReader
from distill.models.stored_tensors import read_headers

VALUES = {
    "matrix": torch.randn(7, 5),
    "half": torch.randn(3, 4, 5).bfloat16(),
    "vector": torch.randn(9).half(),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
    "empty": torch.empty(0, 4),
}


@pytest.fixture(params=["safetensors", "bin"])
def reader(request, tmp_path):
    if request.param == "bin":
        torch.save({**VALUES, "transposed": VALUES["matrix"].t()}, tmp_path / "pytorch_model.bin")
    else:
        save_file(VALUES, tmp_path / "model.safetensors")
    return TensorReader.of_directory(tmp_path, read_headers(tmp_path, "it"))


def test_a_tensor_keeps_its_dtype(reader):
    for name in reader.tensors:
        expected = VALUES["matrix"].t() if name == "transposed" else VALUES[name]
        found = reader.read(name)
        assert found.dtype == reader.dtype(name) == expected.dtype and torch.equal(found, expected), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_place_may_have_another_dtype(reader, dtype):
    for name, value in VALUES.items():
        place = torch.full(value.shape, float("nan"), dtype=dtype)
        reader.read_into(name, place)
        assert torch.equal(place, value.to(dtype)), name


def test_a_place_may_be_a_part_of_a_tensor(reader):
    """An expert of a Switch layer, a column, a transposed tensor, and a parameter."""
    whole = torch.zeros(3, 7, 5)
    reader.read_into("matrix", whole[1])
    columns = torch.zeros(7, 10)
    reader.read_into("matrix", columns[:, ::2])
    transposed = torch.zeros(5, 7)
    reader.read_into("matrix", transposed.t())
    parameter = torch.nn.Parameter(torch.zeros(7, 5))
    reader.read_into("matrix", parameter)
    for found in (whole[1], columns[:, ::2], transposed.t(), parameter):
        assert torch.equal(found, VALUES["matrix"])
    assert not whole[[0, 2]].any() and not columns[:, 1::2].any()


def test_only_the_bytes_of_a_tensor_are_read_and_they_are_counted(reader):
    reader.read("matrix")
    assert reader.bytes_read == 7 * 5 * 4
    reader.read_into("half", torch.empty(3, 4, 5))
    assert reader.bytes_read == 7 * 5 * 4 + 60 * 2
    reader.read("empty")
    assert reader.bytes_read == 260


def test_a_tensor_that_is_larger_than_one_read_is_read_in_parts(reader, monkeypatch):
    monkeypatch.setattr(read_tensors, "_AT_ONCE", 12)
    assert all(torch.equal(reader.read(name), value) for name, value in VALUES.items())


def test_a_system_that_reads_less_than_it_is_asked_for_is_asked_again(reader, monkeypatch):
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, buffers, offset: whole(file, [buffers[0][:7]], offset))
    assert all(torch.equal(reader.read(name), value) for name, value in VALUES.items())


def test_a_file_that_has_become_shorter_is_named(reader, tmp_path):
    [path] = tmp_path.iterdir()
    os.truncate(path, 100)
    with pytest.raises(OSError, match=f"{path.name} is shorter than its header says"):
        reader.read("half")
