"""The version and the commit that a run records: those of this project, not those of an enclosing repository."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from pipelines.tracking import store_uri
from pipelines.tracking.environment import _commit


def git(root, *arguments):
    who = ["-c", "user.name=me", "-c", "user.email=me@host"]
    done = subprocess.run(["git", "-C", root, *who, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def project(root, name="switch-distill"):
    """The files of a project with that name which the lookup of the commit reads."""
    (root / "pipelines").mkdir(parents=True)
    (root / "pipelines" / "tracking.py").write_text("code\n")
    (root / "pyproject.toml").write_text(f'[project]\nname = "{name}"\n')
    return root


def test_the_commit_of_this_project_is_recorded(tmp_path):
    root = project(tmp_path / "clone")
    assert _commit(root) == {}  # no repository
    git(root, "init", "--quiet")
    assert _commit(root) == {}  # no commit
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "all")
    commit = git(root, "rev-parse", "HEAD")
    assert _commit(root) == {"mlflow.source.git.commit": commit, "git.clean": "true"}
    (tmp_path / "link").symlink_to(root)
    assert _commit(tmp_path / "link")["mlflow.source.git.commit"] == commit
    (root / "pipelines" / "tracking.py").write_text("other code\n")
    assert _commit(root) == {"mlflow.source.git.commit": commit, "git.clean": "false"}


def test_the_commit_of_an_enclosing_repository_is_not_recorded(tmp_path):
    root = project(tmp_path / "user", name="something-else")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "all")
    installed = root / ".venv" / "lib" / "site-packages"
    (installed / "pipelines").mkdir(parents=True)
    assert _commit(installed) == {}
    assert _commit(project(root / "vendored")) == {}
    assert _commit(root) == {}  # the packages at the top of another project


def test_an_installed_copy_inside_a_repository_records_its_version_and_no_commit(tmp_path):
    """With the module's path in the installed copy."""
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "-m", "the user's")
    installed = tmp_path / ".venv" / "lib"
    here = Path(store_uri.__file__).parents[2]
    for package in ("distill", "pipelines"):
        shutil.copytree(here / package, installed / package, ignore=shutil.ignore_patterns("__pycache__"))
    information = installed / "switch_distill-9.9.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: switch-distill\nVersion: 9.9\n")
    code = "import json; from pipelines.tracking import environment; print(json.dumps(environment.environment_tags()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=installed, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tags = json.loads(done.stdout)
    assert tags["version.switch-distill"] == "9.9" and "version.torch" in tags
    assert not {"mlflow.source.git.commit", "git.clean"} & set(tags)
