"""Write a student in the format of a runtime, and compare the runtime's answers with the student's.

Each format is a module with ``write(student, source, directory, precision)``.

hf_directory       format hf: a directory for transformers and the tools that build on them
onnx_graphs        format onnx: a graph of the encoder, and a graph of one decoder step
ctranslate2_model  format ctranslate2: the weights in CTranslate2's binary format
pyfunc             format mlflow: a pyfunc model from code
student            the student to export, and the files that all formats have
parity             the check of every export: its runtime against the student on held-out examples
parity_examples    the examples of this check: corrupted pieces of a text, or pairs of a task
plain_t5           a T5 in float64 without transformers, the second reader of an hf export
"""

import importlib
import importlib.util
from pathlib import Path

from distill.errors import UserError

# Format -> its module, the optional libraries that it needs, and its precisions.
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
    """Check, before anything is loaded, that this installation can write the format.

    Raises:
        UserError: the format or the precision is unknown, or an optional library is not installed.
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
    """Write a student in another format.

    Args:
        source: the directory of a dense T5 and its tokenizer.
        directory: an existing directory to write to.
        format, precision: values that ``check_format`` accepts.

    Raises:
        UserError: ``source`` holds no dense T5.
    """
    from students.export.student import load_student

    importlib.import_module(FORMATS[format][0]).write(load_student(source), source, directory, precision)
