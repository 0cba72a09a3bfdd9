"""An ``mlflow`` export is loaded from a directory of any name; its format is tested with the others."""

import json
import tempfile

import pytest

from students.export import write_export
from students.runtime import load_runner


@pytest.mark.parametrize("name", ["a?b=c#d", "h%1 é;&+\\", "-x", "trailing "])
def test_names_that_mean_something_in_a_uri(name, student, tmp_path, monkeypatch):
    """That of a directory for temporary files too."""
    for directory in (tmp_path / "temporary%20files" / name, tmp_path / name):
        directory.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary%20files" / name))
    write_export(student, tmp_path / name, "mlflow", "float32")
    (tmp_path / name / "manifest.json").write_text(json.dumps({"format": "mlflow", "precision": "float32"}))
    assert load_runner(tmp_path / name, threads=1).generate([[5, 6, 1]], [4])
