import json
from pathlib import Path

import pytest
from transformers import T5ForConditionalGeneration

from students.export import FORMATS, check_format, write_export
from students.runtime import load_runner

EXTRAS = {"onnx": "onnxscript", "ctranslate2": "ctranslate2"}


class Exported:
    """Exports of one student, each written and loaded once, and the student loaded by transformers (``plain``)."""

    def __init__(self, source: Path, root: Path):
        self.source, self.root, self._runners = source, root, {}
        self.plain = T5ForConditionalGeneration.from_pretrained(source).eval()

    def directory(self, format: str, precision: str = "float32") -> Path:
        if format in EXTRAS:
            pytest.importorskip(EXTRAS[format], reason=f"the extra {format} is not installed")
        directory = self.root / f"{format}-{precision}"
        if not directory.exists():
            check_format(format, precision)
            directory.mkdir()
            write_export(self.source, directory, format, precision)
            (directory / "manifest.json").write_text(json.dumps({"format": format, "precision": precision}))
        return directory

    def runner(self, format: str, precision: str = "float32"):
        key = format, precision
        if key not in self._runners:
            self._runners[key] = load_runner(self.directory(format, precision), threads=1)
        return self._runners[key]


@pytest.fixture(scope="session")
def exported(student, tmp_path_factory) -> Exported:
    return Exported(student, tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="session")
def gated_exported(gated_student, tmp_path_factory) -> Exported:
    return Exported(gated_student, tmp_path_factory.mktemp("gated-exported"))


@pytest.fixture(params=FORMATS)
def format(request) -> str:
    return request.param
