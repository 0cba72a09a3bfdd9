"""An ``mlflow`` export is loaded from a directory of any name. tests/students/export tests its answers."""

import json
import tempfile

import pytest

from students.export import write_export
from students.runtime import load_runner


@pytest.mark.parametrize("name", ["a?b=c#d", "h%1 é;&+\\", "-x", "trailing "])
def test_directory_names_with_special_characters_of_uris(name, student, tmp_path, monkeypatch):
    """The temporary directory has such a name too."""
    for directory in (tmp_path / "temporary%20files" / name, tmp_path / name):
        directory.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary%20files" / name))
    write_export(student, tmp_path / name, "mlflow", "float32")
    (tmp_path / name / "manifest.json").write_text(json.dumps({"format": "mlflow", "precision": "float32"}))
    assert load_runner(tmp_path / name, threads=1).generate([[5, 6, 1]], [4])
