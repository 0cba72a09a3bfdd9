"""The files of a finished teacher: those that its stage has saved, or those of the checkpoint that it refers to.

Imports torch only to open a teacher.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from distill.errors import UserError
from distill.io.files import directory_digest, directory_uri
from distill.io.hub import at_revision
from pipelines.workdir.stage import FinishedStage, damage_hint

if TYPE_CHECKING:
    from teachers.load import StoredTeacher


class Reference(NamedTuple):
    """The files of a loaded teacher, which are not copied."""

    place: str  # a directory, or a name on the hub
    revision: str | None  # the commit on the hub
    sha256: dict[str, str]  # of each file, by its name

    @property
    def source(self) -> str:
        """The directory, or the pinned name on the hub."""
        return f"{self.place}@{self.revision}" if self.revision else self.place

    @property
    def uri(self) -> str:
        """``hf://NAME@COMMIT``, or the ``file://`` URI of the directory."""
        return f"hf://{self.source}" if self.revision else directory_uri(Path(self.place))

    @property
    def digest(self) -> str:
        """SHA-256 of all digests, the first 32 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.sha256, sort_keys=True).encode()).hexdigest()[:32]


def reference_facts(source: str, stored: "StoredTeacher") -> dict[str, Any]:
    """The facts of a teacher stage that refer to the files of a loaded teacher, with its sizes.

    Args:
        source: a directory, or a name on the hub that may be pinned (``NAME@REVISION``).
        stored: the teacher.
    """
    name, commit = at_revision(source, "model", f"teacher {source!r}")
    place = name if commit else str(Path(name).resolve())
    shape = {name: value for name, value in stored.config.to_dict().items() if isinstance(value, int)}
    return {"reference": Reference(place, commit, stored.digests)._asdict(), "shape": shape}


def reference_of(finished: FinishedStage) -> Reference | None:
    """The reference of a finished stage; None if its files are in its directory."""
    facts = finished.facts.get("reference")
    return None if facts is None else Reference(**facts)


def teacher_digest(finished: FinishedStage) -> str:
    """SHA-256 of the files of a finished teacher, the first 32 hexadecimal digits."""
    reference = reference_of(finished)
    return directory_digest(finished.model) if reference is None else reference.digest


def open_finished_teacher(finished: FinishedStage) -> "StoredTeacher":
    """Open the teacher of a finished stage, after a check that its files are still the same.

    Raises:
        UserError: a file is missing or has changed, or the teacher cannot be opened.
    """
    from teachers.load import open_teacher  # imports torch

    reference = reference_of(finished)
    if reference is None:
        return open_teacher(str(finished.read("model")))
    if reference.revision is None and not Path(reference.place).is_dir():
        raise UserError(f"{finished.title} was loaded from {reference.place}, which does not exist; put it back")
    stored = open_teacher(reference.source)
    if changed := sorted(dict(set(stored.digests.items()) ^ set(reference.sha256.items()))):
        raise UserError(
            f"{changed[0]} in {reference.place} has changed since {finished.title} was computed from it; put the "
            f"former file back, or {damage_hint(finished.directory, finished.title)}"
        )
    return stored
