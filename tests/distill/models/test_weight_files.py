"""Headers of weight files, compared with the safetensors library, and those that are refused."""

import json
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from distill.errors import UserError
from distill.models.stored_tensors import read_headers
from distill.models.weight_files import find_weight_files, read_weight_index

TENSORS = {
    "a": torch.randn(3, 5),
    "b": torch.randn(4).bfloat16(),
    "c": torch.randn(2, 2).half(),
    "d": torch.tensor(1.5, dtype=torch.float64),
    "e": torch.empty(0, 3),
}


def test_headers_are_those_of_the_safetensors_library(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    found, content = read_headers(tmp_path, "it"), path.read_bytes()
    with safe_open(path, "pt") as file:
        assert set(found) == set(file.keys())
        for name, tensor in found.items():
            theirs = file.get_slice(name)
            assert (tensor.file, tensor.dtype, tensor.shape) == (
                path.name,
                theirs.get_dtype(),
                tuple(theirs.get_shape()),
            )
            values = file.get_tensor(name)
            assert tensor.numel == values.numel() and tensor.extent == values.numel() * values.element_size()
            stored = content[tensor.offset : tensor.offset + tensor.extent]
            assert stored == values.reshape(-1).view(torch.uint8).numpy().tobytes()


def test_safetensors_take_precedence_over_bin_files_and_a_single_file_over_several(tmp_path):
    index = {"weight_map": {"a": "model-1.safetensors"}}
    for name in ("pytorch_model.bin", "model-1.safetensors", "model.safetensors"):
        if name == "model.safetensors":
            assert find_weight_files(tmp_path, "it").names == ["pytorch_model.bin"]
            (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
            files = find_weight_files(tmp_path, "it")
            assert files.names == ["model-1.safetensors"] and files.parts == index["weight_map"]
        (tmp_path / name).touch()
    assert find_weight_files(tmp_path, "it").names == ["model.safetensors"]


@pytest.mark.parametrize("kind,save", [("model.safetensors", save_file), ("pytorch_model.bin", torch.save)])
def test_a_tensor_in_two_files_is_refused(tmp_path, kind, save):
    stem, _, ending = kind.partition(".")
    names = [f"{stem}-{number}.{ending}" for number in (0, 1)]
    save({"a": torch.ones(2), "b": torch.ones(1)}, tmp_path / names[0])
    save({"c": torch.ones(1), "a": torch.ones(2)}, tmp_path / names[1])
    parts = {"a": names[0], "b": names[0], "c": names[1]}
    (tmp_path / f"{kind}.index.json").write_text(json.dumps({"weight_map": parts}))
    with pytest.raises(UserError, match=f"{names[0]} and {names[1]} both hold a; copy or save the model again"):
        read_headers(tmp_path, "it")


@pytest.mark.parametrize(
    "index",
    [
        *([], 3, "x", None, {}, {"weight_map": {}}, {"weight_map": []}, {"weight_map": "model-1.safetensors"}),
        *({"weight_map": {"a": value}} for value in (None, 3, True, [], {}, ["model-1.safetensors"])),
        *(
            {"weight_map": {"a": name}}
            for name in ("", ".", "..", "/", "../model-1.safetensors", "x/model-1.safetensors")
        ),
        *(
            {"weight_map": {"a": name}}
            for name in ("/etc/passwd", "model.bin", "\0.safetensors", "model-2.safetensors")
        ),
        *(
            {"weight_map": {"a": name}}
            for name in ("x" * 5000 + ".safetensors", "\ud800.safetensors", "a\n.safetensors")
        ),
        {"weight_map": {"a": "model-1.safetensors", "b": 3}},
        {"weight_map": {"a": "model.safetensors.index.json"}},
    ],
    ids=lambda index: f"{index!r:.40}".encode("ascii", "backslashreplace").decode(),
)
def test_an_index_with_odd_values_is_one_sentence(tmp_path, index):
    save_file({"a": torch.ones(1)}, tmp_path / "model-1.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"it cannot be loaded: model.safetensors.index.json names ") as refused:
        read_headers(tmp_path, "it")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300


@pytest.mark.parametrize("text", ["", "[", '{"weight_map": ', "[" * 100_000, b"\xff\xfe"], ids=range(5))
def test_an_index_that_is_not_json_is_one_sentence(tmp_path, text):
    path = tmp_path / "pytorch_model.bin.index.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=r"index.json is damaged: it is not JSON; copy or save the model again"):
        read_weight_index(path, "it")


def stored(header: object, values: bytes = b"\0" * 8) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + values


def tensor(**changes: object) -> dict:
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\0" * 7, b"\0" * 8, b"\xff" * 64, struct.pack("<Q", 10) + b"{}", struct.pack("<Q", 2**63) + b"{}"),
        *(stored(header) for header in ([], 3, None, "x", b"{", b"\xff\xff", b"[" * 100_000, {"a": 3}, {"a": {}})),
        *(stored(tensor(), b"\0" * length) for length in (7, 9, 0)),
        *(stored(tensor(shape=shape)) for shape in ([3], [-2], [2.0], ["2"], 2, None, [2, -1, -1], [True, 2], [2**70])),
        *(
            stored(tensor(data_offsets=at))
            for at in ([8, 0], [-8, 0], [1, 9], [0], [0, 4], None, ["0", "8"], [0.0, 8.0])
        ),
        *(stored(tensor(dtype=dtype)) for dtype in ("f32", "", "F 32", None, ["F32"])),
        stored({**tensor(), "b": tensor()["a"]}),  # two tensors in one place
        stored({**tensor(), "b": {"dtype": "F32", "shape": [2], "data_offsets": [12, 20]}}, b"\0" * 20),  # a gap
    ],
    ids=lambda content: f"{content!r:.60}",
)
def test_a_damaged_safetensors_file_is_one_sentence(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"^it cannot be loaded: model.safetensors is damaged \(.+\); copy it again$"):
        read_headers(tmp_path, "it")


@pytest.mark.parametrize("dtype", ["I8", "F8_E4M3", "F8_E5M2", "I64", "BOOL", "U8", "C64"])
def test_another_dtype_is_named(tmp_path, dtype):
    (tmp_path / "model.safetensors").write_bytes(stored(tensor(dtype=dtype)))
    with pytest.raises(UserError, match=f"^it has a in {dtype}; save it in float32 or bfloat16$"):
        read_headers(tmp_path, "it")


def test_a_directory_without_weights_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="it has neither model.safetensors nor pytorch_model.bin; save it there with"):
        read_headers(tmp_path, "it")
