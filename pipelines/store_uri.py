"""Which store a work directory is tracked in, and how to speak of it and its errors without what gives access to it."""

import os
import re
from importlib.metadata import entry_points
from pathlib import Path

from distill.disk import is_full
from distill.errors import ExpectedError, UserError
from distill.files import read_json

_SCHEMES = {"http", "https", "file", "sqlite", "postgresql", "mysql", "mssql", "databricks", "databricks-uc", "uc"}

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
        UserError: MLFLOW_TRACKING_URI names no store, or the work directory's stages are tracked in another one.
    """
    scheme, found, _ = (ASKED_FOR or "").partition("://")
    if found and scheme.partition("+")[0] not in _SCHEMES | entry_points(group="mlflow.tracking_store").names:
        raise UserError(
            f"the MLflow store {label()} cannot be used: MLflow knows no {scheme}://; check MLFLOW_TRACKING_URI"
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
