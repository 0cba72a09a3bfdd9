"""The store that a work directory is tracked in, and its name and errors in messages, without credentials."""

import os
import re
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import quote, unquote

from distill.errors import ExpectedError, UserError
from distill.io.disk import is_full
from distill.io.files import directory_uri, read_json

_SCHEMES = {"http", "https", "file", "sqlite", "postgresql", "mysql", "mssql", "databricks", "databricks-uc", "uc"}

_LONGEST = 494  # bytes of a work directory's path: SQLite opens 504 bytes, and /mlflow.db takes 10 of them

# Patterns that MLflow cannot read in the last name of a path, because it unquotes the name more than once.
UNREADABLE = re.compile(r"#|%[0-9a-fA-F]{2}|[\x00-\x1f\x7f]|^file:")

# Read at import, because mlflow writes the store that this process opens into the same variable.
ASKED_FOR = os.environ.get("MLFLOW_TRACKING_URI")

# Environment variable of a process that computes part of the stages of its parent process: the id of the experiment,
# which the parent has got from the store. With it, the process can start while the store is unreachable. It leaves the
# publishing of stages that failed to the parent.
EXPERIMENT = "SWITCH_DISTILL_EXPERIMENT"


class StoreError(ExpectedError, RuntimeError):
    """MLflow's store failed. ``__cause__`` is the exception that the store or its client raised.

    Attributes:
        cause: the reason, in one line without credentials.
        code: MLflow's error code, such as RESOURCE_DOES_NOT_EXIST; None if there is none.
    """

    def __init__(self, cause: str, code: str | None = None):
        super().__init__(
            f"MLflow ({label()}) failed: {cause}; check that it is running, and run the same command again: "
            "results are kept on disk"
        )
        self.cause, self.code = cause, code


def check_store(workdir: Path) -> None:
    """Check that the store of ``workdir`` can be opened, before the slow import of mlflow.

    Raises:
        UserError: MLFLOW_TRACKING_URI names no store, MLflow cannot use one in that directory, or the directory's
            stages are tracked in another store.
    """
    check_path(workdir, "--workdir")
    scheme, found, _ = (ASKED_FOR or "").partition("://")
    if found and scheme.partition("+")[0] not in _SCHEMES | entry_points(group="mlflow.tracking_store").names:
        raise UserError(
            f"the MLflow store {label()} cannot be used: MLflow does not support {scheme}://; check MLFLOW_TRACKING_URI"
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
    """Check that MLflow and its database can store the path that is the value of ``option``.

    Raises:
        UserError: the path, or the directory that it links to, is not UTF-8.
    """
    try:
        f"{path}{os.path.realpath(path)}".encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{option} {path} has a name that is not UTF-8, which MLflow cannot store; choose another"
        ) from error


def sqlite_uri(database: Path) -> str:
    """The URI of an SQLite file, with its path quoted.

    It names the driver, because without a driver MLflow creates the directory of the path with the quoted name.
    """
    return f"sqlite+pysqlite:///{quote(str(database.absolute()))}"


def sqlite_file(uri: str) -> Path | None:
    """The file that an SQLite URI names; None for other stores and for databases in memory or with a URI filename."""
    found = re.match(r"sqlite(?:\+\w+)?:///([^?]+)", uri)
    return Path(unquote(found[1])) if found and not found[1].startswith((":memory:", "file:")) else None


def artifact_location(workdir: Path) -> str:
    """The URI of the directory of artifacts in a work directory's own store."""
    return directory_uri(Path(os.path.realpath(workdir), "mlartifacts"))


def label() -> str:
    """The name of the store in messages, without credentials."""
    return redacted(ASKED_FOR) if ASKED_FOR else "the work directory's own store"


def redacted(uri: str) -> str:
    """``uri`` without user and password."""
    uri = re.sub(r"((?:password|token)=)[^&#]*", r"\1***", uri)
    return uri.replace(_login(uri), "", 1)


def without_credentials(text: str) -> str:
    """``text``, for example an error message, without the user and password of the store."""
    if not ASKED_FOR:
        return text
    login = _login(ASKED_FOR)
    text = text.replace(ASKED_FOR, redacted(ASKED_FOR))
    return text.replace(login, "") if login else text  # in URIs of the same server with another path


def cause_of(error: Exception) -> str:
    """The reason of a failure of MLflow, in one line without credentials. The SQL that databases append is cut off."""
    if isinstance(error, StoreError):
        return error.cause
    if is_full(error):
        return "the disk is full"
    first = str(error).strip().partition("\n")[0]
    return without_credentials(" ".join(first.split()) or type(error).__name__)[:200]


def _login(uri: str) -> str:
    """The part ``user:password@`` of a URI, or an empty string."""
    found = re.match(r"[a-z][a-z0-9+.-]*://([^/?#]*@)", uri, re.IGNORECASE)
    return found[1] if found else ""
