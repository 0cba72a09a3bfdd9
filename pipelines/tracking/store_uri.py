"""Which store a work directory is tracked in, and how to speak of it and its errors without what gives access to it."""

import os
import re
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import quote, unquote

from distill.errors import ExpectedError, UserError
from distill.io.disk import is_full
from distill.io.files import directory_uri, read_json

_SCHEMES = {"http", "https", "file", "sqlite", "postgresql", "mysql", "mssql", "databricks", "databricks-uc", "uc"}

_LONGEST = 489  # bytes of a work directory: SQLite opens a path of 504, of which /.mlflow.db.new takes 15

# In the last name of a path: MLflow unquotes it more than once, whatever it is quoted like, and then refuses some.
UNREADABLE = re.compile(r"#|%[0-9a-fA-F]{2}|[\x00-\x1f\x7f]|^file:")

# Read once: mlflow writes the store that we open into the environment, for its own use.
ASKED_FOR = os.environ.get("MLFLOW_TRACKING_URI")

# Set for a process that computes a part of another one's stages: the experiment, which that one has asked the store
# for. It starts although the store has gone away meanwhile, and leaves to the other what the store does not take.
EXPERIMENT = "SWITCH_DISTILL_EXPERIMENT"


class StoreError(ExpectedError, RuntimeError):
    """MLflow's store did not do what it was asked for; what the store or its client raised is the ``__cause__``.

    Attributes:
        cause: why, in one line without credentials.
        code: MLflow's error code, such as RESOURCE_DOES_NOT_EXIST, where it has one.
    """

    def __init__(self, cause: str, code: str | None = None):
        super().__init__(
            f"MLflow ({label()}) failed: {cause}; see that it runs, and give the same command again: "
            "what was computed is kept"
        )
        self.cause, self.code = cause, code


def check_store(workdir: Path) -> None:
    """Say at once, before mlflow is imported, what would keep the store of ``workdir`` from being opened.

    Raises:
        UserError: MLFLOW_TRACKING_URI names no store, MLflow cannot have one in that directory, or the directory's
            stages are tracked in another one.
    """
    check_path(workdir, "--workdir")
    scheme, found, _ = (ASKED_FOR or "").partition("://")
    if found and scheme.partition("+")[0] not in _SCHEMES | entry_points(group="mlflow.tracking_store").names:
        raise UserError(
            f"the MLflow store {label()} cannot be used: MLflow knows no {scheme}://; check MLFLOW_TRACKING_URI"
        )
    length = len(os.fsencode(os.path.realpath(workdir)))
    if length > _LONGEST and not ASKED_FOR:
        raise UserError(
            f"--workdir {workdir} is too long: its whole path has {length} bytes, and SQLite, which keeps the store in "
            f"it, can use {_LONGEST}; choose a shorter one"
        )
    record = workdir / "tracking.json"
    if not record.exists():
        return
    known = read_json(record, "delete it, and the next stage writes it again")
    if (before := known.get("store") if isinstance(known, dict) else None) != label():
        raise UserError(
            f"the stages in {workdir} are tracked in {before}, not in {label()}; "
            "set MLFLOW_TRACKING_URI (or unset it) accordingly, or choose another --workdir"
        )


def check_path(path: Path, option: str) -> None:
    """Whether MLflow and its database can keep a path that ``option`` names.

    Raises:
        UserError: its name, or that of the directory which it is a link to, is not UTF-8.
    """
    try:
        f"{path}{os.path.realpath(path)}".encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{option} {path} has a name that is not UTF-8, which MLflow cannot keep; choose another"
        ) from error


def sqlite_uri(database: Path) -> str:
    """The URI of an SQLite file, in which no character of its path is one of the URI's syntax.

    It names the driver: without it, MLflow makes the directory of the path as it is spelled in the URI, quoted.
    """
    return f"sqlite+pysqlite:///{quote(str(database.absolute()))}"


def sqlite_file(uri: str) -> Path | None:
    """The file that a URI of SQLite names; None if it is another store's, or SQLite is to read the URI itself."""
    found = re.match(r"sqlite(?:\+\w+)?:///([^?]+)", uri)
    return Path(unquote(found[1])) if found and not found[1].startswith((":memory:", "file:")) else None


def artifact_location(workdir: Path) -> str:
    """Where the files of a work directory's own store are, as a URI."""
    return directory_uri(Path(os.path.realpath(workdir), "mlartifacts"))


def label() -> str:
    """The store in words, without credentials."""
    return redacted(ASKED_FOR) if ASKED_FOR else "the work directory's own store"


def redacted(uri: str) -> str:
    """``uri`` without user and password."""
    uri = re.sub(r"((?:password|token)=)[^&#]*", r"\1***", uri)
    return uri.replace(_login(uri), "", 1)


def without_credentials(text: str) -> str:
    """``text``, such as an error's, without user and password of the store that was asked for."""
    if not ASKED_FOR:
        return text
    login = _login(ASKED_FOR)
    text = text.replace(ASKED_FOR, redacted(ASKED_FOR))
    return text.replace(login, "") if login else text  # with another path after it


def cause_of(error: Exception) -> str:
    """Why MLflow did not take or give something, in one line without credentials; a database adds its SQL after it."""
    if isinstance(error, StoreError):
        return error.cause
    if is_full(error):
        return "the disk is full"
    first = str(error).strip().partition("\n")[0]
    return without_credentials(" ".join(first.split()) or type(error).__name__)[:200]


def _login(uri: str) -> str:
    """``user:password@``, or nothing."""
    found = re.match(r"[a-z][a-z0-9+.-]*://([^/?#]*@)", uri, re.IGNORECASE)
    return found[1] if found else ""
