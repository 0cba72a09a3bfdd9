"""The error for an export that cannot be loaded names the export, whatever the error of its runtime."""

import json

import pytest

from distill.errors import UserError
from students.runtime import load_runner


@pytest.mark.parametrize("format", ["hf", "onnx", "ctranslate2"])
@pytest.mark.parametrize("damage", ["nothing else", "noise"])
def test_a_damaged_export_is_refused_with_its_name(format, damage, student, tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"format": format, "precision": "float32"}))
    if damage == "noise":
        for name in ("config.json", "tokenizer.json", "generation_config.json"):
            (tmp_path / name).write_bytes((student / name).read_bytes())
        for name in ("model.safetensors", "encoder.onnx", "decoder.onnx", "model.bin"):
            (tmp_path / name).write_bytes(bytes(range(256)) * 40)
    with pytest.raises(UserError, match=f"{tmp_path} .*; (export the model again|copy it again|name a directory)"):
        load_runner(tmp_path)
