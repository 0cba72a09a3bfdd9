"""Export to ``mlflow``: a pyfunc model from code, for ``mlflow models serve`` and other loaders of MLflow models.

MLflow's transformers flavour does not work for a T5 of transformers 5: the stored model answers with the prompt.
"""

import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import mlflow
import yaml
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from transformers import T5ForConditionalGeneration

from students import runtime
from students.export import hf_directory
from students.export.student import MAX_NEW_TOKENS

CODE = Path(runtime.__file__).with_name("pyfunc_model.py")


def write(student: T5ForConditionalGeneration, source: Path, directory: Path, precision: str) -> None:
    """Write MLmodel with its requirements, the code, and an ``hf`` export in ``artifacts/student``."""
    signature = ModelSignature(
        Schema([ColSpec("string", "text")]),
        Schema([ColSpec("string")]),
        ParamSchema([ParamSpec("max_tokens", "long", MAX_NEW_TOKENS)]),
    )
    libraries = ("mlflow", "pandas", "safetensors", "torch", "transformers")
    with tempfile.TemporaryDirectory() as tmp_dir:
        plain = Path(tmp_dir) / "student"
        plain.mkdir()
        hf_directory.write(student, source, plain, precision)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a missing input example, which the signature replaces
            mlflow.pyfunc.save_model(
                path=str(directory),
                python_model=str(CODE),
                artifacts={"student": plain.as_uri()},  # quoted, because the temporary directory may have any name
                signature=signature,
                pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in libraries],
            )
    _forget_local_paths(directory / "MLmodel")


def _forget_local_paths(path: Path) -> None:
    """Remove the paths of this machine from MLmodel. MLflow loads from the model's directory and does not need them."""
    model = yaml.safe_load(path.read_text(encoding="utf-8"))
    flavour = model["flavors"]["python_function"]
    flavour["model_code_path"] = CODE.name
    flavour["artifacts"]["student"]["uri"] = flavour["artifacts"]["student"]["path"]
    path.write_text(yaml.safe_dump(model, sort_keys=False), encoding="utf-8")
