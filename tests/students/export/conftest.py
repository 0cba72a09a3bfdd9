import json
from pathlib import Path

import pytest
from transformers import T5ForConditionalGeneration

from distill.config import ModelConfig
from students import init_student
from students.export import FORMATS, check_format, write_export
from students.runtime import load_runner
from teachers.build import build_teacher
from teachers.config import SwitchConfig
from tests.once import once

EXTRAS = {"onnx": "onnxscript", "ctranslate2": "ctranslate2"}


class Exported:
    """Exports of one student, each written and loaded once, and the student loaded by transformers (``plain``).

    All workers share the directory ``root`` of the exports.
    """

    def __init__(self, source: Path, root: Path):
        self.source, self.root, self._runners = source, root, {}
        root.mkdir(exist_ok=True)
        self.plain = T5ForConditionalGeneration.from_pretrained(source).eval()

    def directory(self, format: str, precision: str = "float32") -> Path:
        if format in EXTRAS:
            pytest.importorskip(EXTRAS[format], reason=f"the extra {format} is not installed")

        def write(directory: Path) -> None:
            check_format(format, precision)
            write_export(self.source, directory, format, precision)
            (directory / "manifest.json").write_text(json.dumps({"format": format, "precision": precision}))

        return once(self.root / f"{format}-{precision}", write)

    def runner(self, format: str, precision: str = "float32"):
        key = format, precision
        if key not in self._runners:
            self._runners[key] = load_runner(self.directory(format, precision), threads=1)
        return self._runners[key]


@pytest.fixture(scope="session")
def exported(student, shared) -> Exported:
    return Exported(student, shared / "exported")


@pytest.fixture(scope="session")
def gated_exported(gated_student, shared) -> Exported:
    return Exported(gated_student, shared / "gated-exported")


def _save_of_another_size(directory: Path, data) -> None:
    """A student with wider FFNs and fewer decoder layers than its teacher, and its tokenizer."""
    shape = ModelConfig(d_model=32, d_ff=48, d_kv=16, num_heads=2, num_layers=2)
    ids = {"pad": data.special_tokens.pad, "eos": data.special_tokens.eos}
    teacher = build_teacher(shape, SwitchConfig(), data.vocab_size, 2, **ids, seed=0)
    init_student(teacher, d_ff=80, num_decoder_layers=1).save_pretrained(directory)
    data.tokenizer.save_pretrained(directory)


@pytest.fixture(scope="session")
def resized_exported(data, shared) -> Exported:
    source = once(shared / "resized-student", lambda directory: _save_of_another_size(directory, data))
    return Exported(source, shared / "resized-exported")


@pytest.fixture(params=FORMATS)
def format(request) -> str:
    return request.param
