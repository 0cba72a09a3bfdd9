"""Decisions that fail the build: directions of imports, sizes of files, lists of modules, users of mlflow."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "distill": {"distill"},
    "teachers": {"distill", "teachers"},
    "students": {"distill", "students", "teachers"},
    "pipelines": {"distill", "teachers", "students", "pipelines"},
}
# Folder of pipelines -> folders that it may import.
WINGS: dict[str, set[str]] = {"config": set()}
WINGS["workdir"] = {"config"}
WINGS["tracking"] = {"config", "workdir"}
WINGS["reporting"] = {*WINGS["tracking"], "tracking"}
WINGS["runner"] = WINGS["deploy"] = {*WINGS["reporting"], "reporting"}
WINGS["stages"] = {*WINGS["runner"], "runner", "deploy"}
WINGS["cli"] = {*WINGS["stages"], "stages"}
# Packages whose __init__ re-exports names of their modules.
PUBLIC = {"students", "teachers", "students.export", "students.runtime", "pipelines.reporting", "pipelines.cli"}
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in SOURCES}


def edges() -> dict[str, set[str]]:
    """Module -> our modules that it imports, including imports in functions and imports for types only."""
    found: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        whole = {f"{node.module}.{alias.name}" for node in nodes for alias in node.names} & MODULES.keys()
        found[name] = (whole | ({node.module for node in nodes} & MODULES.keys())) - {name}
    return found


def test_no_module_imports_itself_through_others():
    TopologicalSorter({name: ours - PUBLIC for name, ours in edges().items() if name not in PUBLIC}).prepare()


def test_the_folders_of_pipelines_are_in_order():
    wrong = [
        f"{name} imports {other}"
        for name, others in edges().items()
        for other in others
        if name.startswith("pipelines.") and other.startswith("pipelines.")
        if other.split(".")[1] not in {name.split(".")[1], *WINGS[name.split(".")[1]]}
    ]
    assert {path.parent.name for path in (ROOT / "pipelines").glob("*/*.py")} == set(WINGS)
    assert not wrong


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way_and_files_stay_short(path):
    package = path.relative_to(ROOT).parts[0]
    ours = {name.split(".")[0] for name in imported(path)} & set(PACKAGES)
    assert ours <= PACKAGES[package]
    assert len(path.read_text().splitlines()) <= 300


@pytest.mark.parametrize("path", [path for path in SOURCES if path.name == "__init__.py"], ids=module_of)
def test_the_docstring_of_a_folder_lists_its_modules(path):
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    listed = re.findall(r"^([a-z][\w.]*) {2,}\S", docstring, re.MULTILINE)
    there = [other.name.removesuffix(".py") for other in path.parent.iterdir() if not other.name.startswith(("_", "."))]
    assert sorted(listed) == sorted(there)


def test_students_read_teachers_only_to_load_one():
    modules = {name for path in (ROOT / "students").glob("*.py") for name in imported(path) if "teachers" in name}
    assert modules <= {"teachers.build", "teachers.load", "teachers.save"}


def test_mlflow_is_imported_where_its_store_or_its_models_are_the_subject():
    users = {path for path in SOURCES if any(name.split(".")[0] == "mlflow" for name in imported(path))}
    clients = {path for path in users if path.parent == ROOT / "pipelines" / "tracking"}
    assert {path.name for path in clients} == {"store.py", "tracked_run.py", "metric_log.py"}
    assert {path.name for path in users - clients} == {"pyfunc.py", "pyfunc_model.py", "mlflow_runner.py"}


def test_models_and_tokenizers_are_saved_in_names_that_other_readers_know():
    """transformers 5 has new names, which ``distill.models.save`` replaces."""
    users = {str(path.relative_to(ROOT)) for path in SOURCES if ".save_pretrained(" in path.read_text()}
    configs = {f"students/export/{name}.py" for name in ("student", "ctranslate2_model")}
    assert users == {"distill/models/save.py", "teachers/save.py"} | configs


QUICK = ["pipelines.cli", "pipelines.config.run_config", "pipelines.workdir.plan", "pipelines.runner.runner"]
QUICK += ["pipelines.cli.inspection", "pipelines.deploy.serve", "pipelines.deploy.bench_serving"]
QUICK += ["students.export", "students.runtime", "students.serving.server"]


@pytest.mark.parametrize("module", QUICK)
def test_what_answers_quickly_imports_nothing_that_is_slow_to_import(module):
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'transformers', 'scipy'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
