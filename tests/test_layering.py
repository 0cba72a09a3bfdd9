"""Decisions that fail the build: the direction of imports, the size of files, who may import mlflow."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "distill": {"distill"},
    "teachers": {"distill", "teachers"},
    "students": {"distill", "students", "teachers"},
    "pipelines": {"distill", "teachers", "students", "pipelines"},
}
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way_and_files_stay_short(path):
    package = path.relative_to(ROOT).parts[0]
    ours = {name.split(".")[0] for name in imported(path)} & set(PACKAGES)
    assert ours <= PACKAGES[package]
    assert len(path.read_text().splitlines()) <= 300


def test_students_read_teachers_only_to_load_one():
    modules = {name for path in (ROOT / "students").glob("*.py") for name in imported(path) if "teachers" in name}
    assert modules <= {"teachers.model"}


def test_mlflow_is_imported_where_its_store_or_its_models_are_the_subject():
    users = {path.name for path in SOURCES if any(name.split(".")[0] == "mlflow" for name in imported(path))}
    models = {"pyfunc.py", "pyfunc_model.py", "mlflow_runner.py"}
    assert users == {"store.py", "tracking.py", "feed.py"} | models


def test_models_and_tokenizers_are_saved_in_names_that_other_readers_know():
    """transformers 5 has names of its own, which ``distill.saving`` replaces."""
    users = {str(path.relative_to(ROOT)) for path in SOURCES if ".save_pretrained(" in path.read_text()}
    configs = {f"students/export/{name}.py" for name in ("student", "ctranslate2_model")}
    assert users == {"distill/saving.py", "teachers/model.py"} | configs


QUICK = [f"pipelines.{name}" for name in ("cli", "config", "plan", "run", "serve", "bench_serving")]
QUICK += ["students.export", "students.runtime", "students.serving.server"]


@pytest.mark.parametrize("module", QUICK)
def test_what_answers_quickly_imports_nothing_that_is_slow_to_import(module):
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'transformers', 'scipy'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
