"""The versions of libraries and of this code: facts that a result depends on besides its config."""

import contextlib
import platform
import subprocess
from functools import cache
from pathlib import Path

_LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy", "mlflow")
_PROJECT = "switch-distill"  # as pyproject.toml names it


@cache
def environment_tags() -> dict[str, str]:
    """Versions, host and git commit, as tags of an MLflow run."""
    tags = {f"version.{name}": version for name, version in versions().items()}
    return tags | {"host": platform.node()} | _commit(Path(__file__).parents[2])


def versions() -> dict[str, str]:
    """The versions of Python, of the libraries, and of this project if it is installed."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}}
    with contextlib.suppress(PackageNotFoundError):  # a clone that is not installed; its commit identifies it
        found[_PROJECT] = version(_PROJECT)
    return found


def _commit(root: Path) -> dict[str, str]:
    """The git commit of ``root``, the directory of this project's packages, and whether its files are unchanged.

    Empty if ``root`` is not the top directory of a clone of this project. If the project is inside another repository,
    for example in a virtual environment, the commit of that repository does not identify this code.
    """
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        ours = f'name = "{_PROJECT}"'.encode() in (root / "pyproject.toml").read_bytes()
        if ours and Path(_git(root, "rev-parse", "--show-toplevel")).resolve() == root.resolve():
            clean = not _git(root, "status", "--porcelain")
            return {"mlflow.source.git.commit": _git(root, "rev-parse", "HEAD"), "git.clean": str(clean).lower()}
    return {}


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
