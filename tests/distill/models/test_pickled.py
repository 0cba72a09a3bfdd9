"""``.bin`` files: what torch.save writes is read, and no code in one is ever executed."""

import builtins
import io
import os
import pickle
import re
import subprocess
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from distill.errors import UserError
from distill.models import pickled
from distill.models.read_tensors import TensorReader
from distill.models.stored_tensors import read_headers

NAME = "pytorch_model.bin"


def refusal(directory: Path) -> str:
    with pytest.raises(UserError) as refused:
        read_headers(directory, "it")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400
    return str(refused.value)


def test_tensors_in_any_place_of_a_storage_are_read(tmp_path):
    table, shared = torch.arange(6000.0).reshape(100, 60), torch.randn(96, 64)
    parts = torch.randn(4, 8, 6).bfloat16()
    values = {
        "shared.weight": shared,
        "encoder.embed_tokens.weight": shared,
        "lm_head.weight": shared.t(),
        "rows": table[40:43],
        "columns": table[:, 7:9],
        "every other": table[::2, 1::3],
        "last": table[99, 59],
        "broadcast": torch.randn(5, 1).expand(5, 4),
        "swapped": parts.transpose(0, 2),
        **{f"expert_{number}": part for number, part in enumerate(parts)},
        "float64": torch.randn(3, dtype=torch.float64),
        "float16": torch.randn(3, 3).half(),
        "empty": torch.empty(0, 4),
        "parameter": nn.Parameter(torch.randn(3)),
    }
    torch.save(OrderedDict(values), tmp_path / NAME)
    reader = TensorReader.of_directory(tmp_path, read_headers(tmp_path, "it"))
    assert reader.tensors.keys() == values.keys()
    for name, value in values.items():
        assert reader.dtype(name) == value.dtype and torch.equal(reader.read(name), value), name


def test_a_state_dict_of_a_module_is_read(tmp_path):
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    torch.save(module.state_dict(), tmp_path / NAME)
    reader = TensorReader.of_directory(tmp_path, read_headers(tmp_path, "it"))
    assert all(torch.equal(reader.read(name), value) for name, value in module.state_dict().items())


class Call:
    """A pickle of it calls a function when it is loaded."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class Own:
    """An instance of a class that only this module has."""


# By the name that a pickle gives to it.
HOSTILE = {
    "posix.system": lambda made: Call(os.system, f"touch {made}"),
    "exec": lambda made: Call(builtins.exec, f"open({str(made)!r}, 'w')"),
    "eval": lambda made: Call(builtins.eval, f"open({str(made)!r}, 'w')"),
    "commands.Popen": lambda made: Call(subprocess.Popen, ["touch", str(made)]),
    "getattr": lambda made: Call(getattr, Call(__import__, "os"), "system"),
    "torch.serialization.load": lambda made: Call(torch.load, str(made)),
    "torch.nn.modules.linear.Linear": lambda made: nn.Linear(2, 2),
    "test_pickled.Own": lambda made: Own(),
}
PLACES = {
    "alone": lambda hostile: hostile,
    "in a dict": lambda hostile: {"a": torch.ones(2), "b": hostile},
    "nested": lambda hostile: {"a": torch.ones(2), "b": {"c": [(hostile,)]}},
    "as a key": lambda hostile: {hostile: torch.ones(2)},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("thing", HOSTILE)
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, thing, place):
    made = tmp_path / "made"
    torch.save(PLACES[place](HOSTILE[thing](made)), tmp_path / NAME)
    said = refusal(tmp_path)
    named = {"getattr": "(getattr|__import__)"}.get(thing, thing)
    assert re.search(rf"it cannot be loaded: {NAME} holds more than tensors \([\w.]*{named}\), which could run", said)
    assert said.endswith("take the model from its authors as safetensors") and not made.exists()


def archive(path: Path, content: bytes, **more: bytes) -> None:
    """An archive as torch.save writes it, with a pickle of any content."""
    with zipfile.ZipFile(path, "w") as file:
        for name, data in {"data.pkl": content, "version": b"3\n", "byteorder": b"little", **more}.items():
            file.writestr(f"archive/{name}", data)


def dumped(value: object) -> bytes:
    return pickle.dumps(value, 2)  # the protocol of torch.save


def storage(size: int) -> bytes:
    """A pickle of {"a": a float32 tensor of ``size`` values in the record data/0}, with nothing checked."""

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", size) if isinstance(value, Storage) else None

        def reducer_override(self, value):
            if isinstance(value, Own):
                return torch._utils._rebuild_tensor_v2, (Storage(), 0, (size,), (1,), False, OrderedDict())
            return NotImplemented

    out = io.BytesIO()
    Pickler(out, 2).dump({"a": Own()})
    return out.getvalue()


@pytest.mark.parametrize(
    "content,message",
    [
        (dumped({"a": 3}), "holds a of type int, which is no named dense tensor; save only the state_dict"),
        (dumped([1]), "holds its content of type list, which is no named dense tensor"),
        (dumped({"a": {"b": {}}}), "holds a of type dict, which is no named dense tensor"),
        (b"\x80\x02}q\x00U\x01ah\x00s.", "holds a of type dict"),  # a dict that holds itself
        (b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".", "holds its content of type list"),  # deeply nested
        (b"\x80\x02" + b"(" * 10**4 + b"t" * 10**4 + b".", "holds its content of type tuple"),
        (b"\x80\x02}U\x01a\x8a\xff" + b"\x7f" * 255 + b"s.", "holds a of type int"),  # a number of 2040 bits
        (b"\x80\x02", "is damaged ("),
        (b"", "is damaged ("),
        (b"\xff" * 100, "holds more than tensors (Unsupported operand 255), which"),
        (b"\x80\x02h\x07.", "is damaged ("),  # names an object that does not exist
        (storage(10**15), "is damaged (its tensor a is cut off); copy it again"),
        (storage(5), "is damaged (its tensor a is cut off); copy it again"),
    ],
    ids=range(13),
)
def test_an_odd_pickle_is_one_sentence(tmp_path, content, message):
    archive(tmp_path / NAME, content, **{"data/0": b"\0" * 16})
    assert message in refusal(tmp_path)


def test_the_pickles_of_these_tests_are_read_where_they_are_right(tmp_path):
    archive(tmp_path / NAME, storage(4), **{"data/0": torch.arange(4.0).numpy().tobytes()})
    reader = TensorReader.of_directory(tmp_path, read_headers(tmp_path, "it"))
    assert torch.equal(reader.read("a"), torch.arange(4.0))


def repack(path: Path, compression: dict[str, int], drop: str = " ") -> None:
    """Write an archive again with another program; ``compression`` by the end of a record's name."""
    with zipfile.ZipFile(path) as old:
        records = {entry.filename: old.read(entry) for entry in old.infolist() if not entry.filename.endswith(drop)}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in records.items():
            new.writestr(name, content, next((one for end, one in compression.items() if name.endswith(end)), 0))


@pytest.mark.parametrize(
    "compression", [{"": zipfile.ZIP_DEFLATED}, {"/0": zipfile.ZIP_DEFLATED}, {"data.pkl": zipfile.ZIP_DEFLATED}, {}]
)
def test_an_archive_that_another_program_has_packed_is_refused(tmp_path, compression):
    """torch computes the places of values by its own rules, and they would be wrong."""
    torch.save({"a": torch.arange(1000.0), "b": torch.randn(30, 7)}, tmp_path / NAME)
    repack(tmp_path / NAME, compression)
    said = refusal(tmp_path)
    assert said.startswith(f"it cannot be loaded: {NAME} is not packed as torch.save packs it; save it again with: ")
    command = said.partition("with: ")[2].replace(repr(NAME), repr(str(tmp_path / NAME)))
    exec(command, {"torch": torch})
    reader = TensorReader.of_directory(tmp_path, read_headers(tmp_path, "it"))
    assert torch.equal(reader.read("a"), torch.arange(1000.0))


def test_a_small_archive_does_not_expand(tmp_path, monkeypatch):
    """A pickle of a gigabyte of zeros, compressed, would take memory before it is read."""
    archive(tmp_path / NAME, b"\0" * 10**6)
    repack(tmp_path / NAME, {"": zipfile.ZIP_DEFLATED})
    monkeypatch.setattr(pickled.torch, "load", lambda *_, **__: pytest.fail("torch.load has been called"))
    assert "is not packed as torch.save packs it" in refusal(tmp_path)


def test_a_file_in_the_format_before_torch_1_6_is_refused_with_the_command_that_converts_it(tmp_path, monkeypatch):
    values = {"a": torch.randn(3)}
    torch.save(values, tmp_path / NAME, _use_new_zipfile_serialization=False)
    said = refusal(tmp_path)
    assert "has the format of torch before 1.6; convert it with: " in said
    monkeypatch.chdir(tmp_path)
    exec(said.partition("with: ")[2], {"torch": torch})
    reader = TensorReader.of_directory(tmp_path, read_headers(tmp_path, "it"))
    assert torch.equal(reader.read("a"), values["a"])


@pytest.mark.parametrize("value", [torch.eye(2).to_sparse(), torch.Size([2]), 3, "x", None, {}, [torch.ones(1)]])
def test_anything_but_dense_tensors_is_named(tmp_path, value):
    torch.save({"a": torch.ones(1), "b": value}, tmp_path / NAME)
    assert f"{NAME} holds b of type {type(value).__name__}, which is no named dense tensor" in refusal(tmp_path)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.int64, torch.bool, torch.complex64])
def test_another_dtype_is_named(tmp_path, dtype):
    torch.save({"a": torch.zeros(3).to(dtype)}, tmp_path / NAME)
    assert refusal(tmp_path) == f"it has a in {str(dtype)[6:]}; save it in float32 or bfloat16"


def test_every_truncated_file_is_one_sentence(tmp_path):
    torch.save({"a": torch.randn(100), "b": torch.randn(10)}, tmp_path / NAME)
    content = (tmp_path / NAME).read_bytes()
    for length in [*range(0, 8), *range(8, len(content), 97)]:
        (tmp_path / NAME).write_bytes(content[:length])
        assert f"{NAME} is damaged (" in refusal(tmp_path), length


@pytest.mark.parametrize("content", [b"<html>" * 100, b"\0" * 100, b"PK\x03\x04" + b"\0" * 100, b"{}"])
def test_a_file_of_another_kind_is_one_sentence(tmp_path, content):
    (tmp_path / NAME).write_bytes(content)
    assert f"{NAME} is damaged (" in refusal(tmp_path)
