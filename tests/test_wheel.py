"""The distributions: their files and metadata, and the program from an installed wheel."""

import ast
import contextlib
import importlib.util
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import sysconfig
import tarfile
import time
import tomllib
import venv
from collections.abc import Iterator
from email.message import Message
from email.parser import BytesParser
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZipFile

import pytest
import requests

from distill.metrics import METRICS
from students.export import FORMATS

ROOT = Path(__file__).parent.parent
PACKAGES = ("distill", "teachers", "students", "pipelines")
BUILD = "import setuptools.build_meta as backend, sys; print(getattr(backend, sys.argv[1])(sys.argv[2]))"


def build(kind: str, source: Path, target: Path) -> Path:
    """The ``wheel`` or ``sdist`` of a source tree, as pip makes it, with the setuptools of this environment."""
    command = [sys.executable, "-c", BUILD, f"build_{kind}", str(target)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target / done.stdout.split()[-1]


def contents(wheel: Path) -> dict[str, bytes]:
    with ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


class Built(NamedTuple):
    tree: Path
    wheel: Path
    sdist: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Built:
    """Distributions of a copy of the tree, because setuptools packs files that earlier builds left in ``build``."""
    root = tmp_path_factory.mktemp("distributions")
    tree = root / "tree"
    for folder in (*PACKAGES, "benchmarks", "docs", "tests"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, tree)
    return Built(tree, build("wheel", tree, root), build("sdist", tree, root))


def files_of_packages(tree: Path) -> dict[str, bytes]:
    paths = [path for package in PACKAGES for path in (tree / package).rglob("*") if path.is_file()]
    return {path.relative_to(tree).as_posix(): path.read_bytes() for path in paths}


def metadata_of_project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def metadata(wheel: Path) -> Message:
    found = [text for name, text in contents(wheel).items() if name.endswith(".dist-info/METADATA")]
    return BytesParser().parsebytes(found[0])


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(built):
    held = contents(built.wheel)
    about = {name.partition(".dist-info/")[2]: held.pop(name) for name in list(held) if ".dist-info/" in name}
    assert held == files_of_packages(built.tree) and "students/serving/page.html" in held
    assert about.keys() == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}
    assert about["licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    assert about["top_level.txt"].decode().split() == sorted(PACKAGES)


def test_the_sdist_holds_no_tests_and_makes_the_same_wheel(built, tmp_path):
    with tarfile.open(built.sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (tree,) = tmp_path.iterdir()
    made = {"PKG-INFO", "setup.cfg", "switch_distill.egg-info"}
    assert {path.name for path in tree.iterdir()} - made == {
        *PACKAGES,
        *("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml"),
    }
    again, first = contents(build("wheel", tree, tmp_path)), contents(built.wheel)
    for held in (again, first):
        held.pop(next(name for name in held if name.endswith("/RECORD")))  # has an order
    assert again == first


def test_the_metadata_is_that_of_pyproject(built):
    project = metadata_of_project()
    known = metadata(built.wheel)
    assert (known["Name"], known["Version"]) == ("switch-distill", project["version"])
    assert known["Requires-Python"] == ">=3.11" and known["License-Expression"] == "Apache-2.0"
    assert known["Description-Content-Type"] == "text/markdown"
    assert known.get_payload(decode=True).decode().strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()
    extras = project["optional-dependencies"]
    assert set(known.get_all("Provides-Extra")) == set(extras) >= {"ctranslate2", "onnx", "serve"}
    required = known.get_all("Requires-Dist")
    assert [one for one in required if "extra ==" not in one] == project["dependencies"]
    for extra, needs in extras.items():
        assert [one.partition(";")[0] for one in required if f'extra == "{extra}"' in one] == needs
    (script,) = [text.decode() for name, text in contents(built.wheel).items() if name.endswith("entry_points.txt")]
    assert script.split() == ["[console_scripts]", "switch-distill", "=", "pipelines.cli:main"]


def declared(*extras: str) -> set[str]:
    """Names of the distributions that ``pip install switch-distill[EXTRAS]`` asks for itself."""
    project = metadata_of_project()
    needs = [*project["dependencies"], *(need for extra in extras for need in project["optional-dependencies"][extra])]
    return {normalised(re.match(r"[\w.-]+", need)[0]) for need in needs}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_imported_library_is_declared():
    """An undeclared library that another one installs may be missing later, outside of the tests' environment."""
    distributions = packages_distributions()
    known = declared("corpora", "ctranslate2", "metrics", "onnx", "ray", "serve")
    undeclared = {}
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        for name in {name.partition(".")[0] for name in names} - {*PACKAGES, *sys.stdlib_module_names}:
            if not {normalised(one) for one in distributions.get(name, [name])} & known:
                undeclared[name] = str(path.relative_to(ROOT))
    assert not undeclared


def test_the_extra_that_a_message_names_brings_what_is_missing():
    for name, (_, libraries, _) in FORMATS.items():
        assert not libraries or set(libraries) <= declared(name)
    assert {"fastapi", "uvicorn", "prometheus-client"} <= declared("serve")
    assert {metric.library[1] for metric in METRICS.values() if metric.library} <= declared("metrics")


class Installed:
    """An environment with the wheel. Its programs run outside of the repository, without variables that name it."""

    def __init__(self, directory: Path):
        self.directory = directory
        named = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "MLFLOW_TRACKING_URI"}
        self.environment = {name: value for name, value in os.environ.items() if name not in named}
        self.environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def command(self, program: str, *arguments: str) -> list[str]:
        return [str(self.directory / "bin" / program), *arguments]

    def run(self, cwd: Path, program: str, *arguments: str) -> str:
        """The program's output on stdout."""
        options = {"cwd": cwd, "env": self.environment, "capture_output": True, "text": True}
        done = subprocess.run(self.command(program, *arguments), **options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextlib.contextmanager
    def started(self, cwd: Path, *arguments: str) -> Iterator[subprocess.Popen]:
        """A server, and its lines on stderr."""
        options = {"cwd": cwd, "env": self.environment, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(self.command("switch-distill", *arguments), **options) as process:
            yield process
            process.terminate()
            process.stderr.read()


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Installed:
    """The wheel in a new environment, where a .pth file names the directory of this environment's libraries.

    So they need not be installed again, which would take gigabytes. Python only adds a directory that a .pth file names
    to its path. It does not run the .pth files in it, and so not the one that leads an editable installation to the
    repository. A test proves that.
    """
    directory = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(directory, symlinks=True)
    place = ["--python", str(directory / "bin" / "python")]
    quiet = ["--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    subprocess.run([sys.executable, "-m", "pip", *place, "install", *quiet, str(built.wheel)], check=True)
    (site_packages,) = directory.glob("lib/python*/site-packages")
    (site_packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Installed(directory)


def test_the_installed_program_runs_anywhere_and_is_no_part_of_the_repository(installed, tmp_path):
    version = metadata_of_project()["version"]
    assert installed.run(tmp_path, "switch-distill", "--version") == f"switch-distill {version}\n"
    assert installed.run(tmp_path, "python", "-m", "pipelines.cli", "--version") == f"switch-distill {version}\n"
    names = ", ".join(PACKAGES)
    places = installed.run(tmp_path, "python", "-c", f"import {names}\nfor one in {names}: print(one.__file__)")
    assert all(Path(place).is_relative_to(installed.directory) for place in places.split())
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def folder(installed, tmp_path_factory) -> Path:
    """A finished ``run smoke``, whose chains are separate processes, in the default work directory of a folder.

    The folder is a user's repository, whose commit says nothing about this project. Its modules have the names of
    this project's and of libraries, and must not be imported.
    """
    here = tmp_path_factory.mktemp("user")
    git = ["git", "-c", "user.name=me", "-c", "user.email=me@host", "-C", str(here)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    (here / "pipelines").mkdir()
    for name in ("pipelines/__init__", "distill", "students", "teachers", "mlflow", "random"):
        (here / f"{name}.py").write_text("raise ImportError('a file of the user')\n")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "--quiet", "-m", "the user's"], check=True)
    installed.run(here, "switch-distill", "run", "smoke", "--set", "jobs=2")
    return here


@pytest.mark.slow
def test_a_run_is_tracked_in_its_folder_with_the_version_and_no_commit(installed, folder):
    assert {"mlflow.db", "mlartifacts", "report.json", "fraction_kept.png"} <= {
        path.name for path in (folder / "work").iterdir()
    }
    with contextlib.closing(sqlite3.connect(folder / "work" / "mlflow.db")) as store:
        tags = set(store.execute("SELECT key, value FROM tags"))
    assert ("version.switch-distill", metadata_of_project()["version"]) in tags
    assert not {"mlflow.source.git.commit", "git.clean"} & {key for key, _ in tags}
    tree = json.loads(installed.run(folder, "switch-distill", "lineage", "models:/smoke-student-e4/1", "--json"))
    assert tree["stage"] == "distill" and tree["inputs"]


@pytest.fixture(scope="module")
def exported(installed, folder):
    """Export the student to a format, once. The export itself compares its answers with the student's."""

    def export(format: str) -> Path:
        libraries = FORMATS[format][1]
        if missing := [library for library in libraries if importlib.util.find_spec(library) is None]:
            pytest.skip(f"{', '.join(missing)} not installed")
        directory = folder / f"export-{format}"
        if not directory.exists():
            model = ["models:/smoke-student-e4/1", "--format", format, "--output", directory.name]
            installed.run(folder, "switch-distill", "export", *model)
        return directory

    return export


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_each_format_is_exported_and_loaded(format, installed, exported, tmp_path):
    request, reply = tmp_path / "request.json", tmp_path / "reply.json"
    rows = {"inputs": [[5, 1]], "targets": [[6, 1]], "answers": [[7, 1]], "max_tokens": [4]}
    request.write_text(json.dumps({**rows, "batch_size": 1}))
    files = [str(exported(format)), str(request), str(reply)]
    installed.run(tmp_path, "python", "-m", "students.runtime", *files)
    assert [len(row) for row in json.loads(reply.read_text())["target_scores"]] == [2]


@pytest.mark.slow
def test_an_export_is_served_with_its_page(installed, exported):
    directory = exported("hf")
    with installed.started(directory.parent, "serve", directory.name, "--port", "0") as server:
        line = next(line for line in server.stderr if "Serving" in line)
        url = re.search(r"on (http://\S+);", line)[1]
        assert requests.get(url, timeout=60).content == (ROOT / "students" / "serving" / "page.html").read_bytes()
        asked = {"prompt": "for name in <extra_id_0>:", "max_tokens": 4}
        answer = requests.post(f"{url}/v1/completions", json=asked, timeout=60)
        assert answer.status_code == 200 and answer.json()["choices"]


@pytest.mark.slow
def test_the_ui_starts(installed, folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with installed.started(folder, "ui", "--port", port) as server:
        end = time.monotonic() + 120
        while True:
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"http://127.0.0.1:{port}/health", timeout=5).ok:
                    break
            assert time.monotonic() < end and server.poll() is None
            time.sleep(0.2)
