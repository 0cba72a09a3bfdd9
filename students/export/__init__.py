"""Write a student in the format of a runtime, and compare what that runtime makes of it with the student.

Each format is a module with ``write(student, source, directory, precision)``; ``parity`` is the gate of them all.
"""

import importlib
import importlib.util
from pathlib import Path

from distill.errors import UserError

# Format -> its module, the libraries that it needs beside the project's own, and the precisions that it has.
FORMATS = {
    "hf": ("students.export.hf_directory", (), ("float32",)),
    "onnx": (
        "students.export.onnx_graphs",
        ("onnx", "onnxscript", "onnxruntime"),
        ("float32", "int8", "int8-except-head"),
    ),
    "ctranslate2": ("students.export.ctranslate2_model", ("ctranslate2",), ("float32", "int8")),
    "mlflow": ("students.export.pyfunc", (), ("float32",)),
}


def check_format(format: str, precision: str) -> None:
    """Say at once, before anything is loaded, whether this can be written here.

    Raises:
        UserError: an unknown format or precision, or an optional part that is not installed.
    """
    if format not in FORMATS:
        raise UserError(f"--format is {format!r}; use {', '.join(FORMATS)}")
    _, libraries, precisions = FORMATS[format]
    if precision not in precisions:
        raise UserError(f"--precision is {precision!r}, but {format} has {', '.join(precisions)}")
    if missing := [library for library in libraries if importlib.util.find_spec(library) is None]:
        raise UserError(
            f'--format {format} needs {", ".join(missing)}; install it with: pip install "switch-distill[{format}]"'
        )


def write_export(source: Path, directory: Path, format: str, precision: str) -> None:
    """Write the student in ``source`` to ``directory``, which exists, in a format that ``check_format`` accepts.

    Raises:
        UserError: ``source`` holds no dense T5.
    """
    from students.export.student import load_student

    importlib.import_module(FORMATS[format][0]).write(load_student(source), source, directory, precision)
