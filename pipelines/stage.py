"""What a stage is: its fingerprint, its directory, and how a finished one is recognised. Needs no torch."""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from distill.errors import UserError
from distill.files import read_json, write_json


@dataclass(frozen=True)
class Stage:
    """One stage of one ratio and seed: a function of its settings, its inputs and the data, and of nothing else."""

    kind: str  # baseline, teacher, init, label, distill or report
    settings: dict[str, Any]
    inputs: dict[str, "Stage"] = field(default_factory=dict)  # role -> the stage whose output is read
    data: str = ""  # fingerprint of the prepared data
    ratio: str | None = None
    seed: int | None = None
    variant: str | None = None  # which of the config's students this is a stage of; the first, if of several

    @cached_property
    def fingerprint(self) -> str:
        upstream = {role: stage.fingerprint for role, stage in self.inputs.items()}
        identity = json.dumps([self.kind, self.settings, upstream, self.data], sort_keys=True)
        return hashlib.sha256(identity.encode()).hexdigest()[:32]

    @property
    def title(self) -> str:
        """``teacher e8``, ``distill e8 hard-labels seed 1``; seed 0 is not named."""
        seed = f"seed {self.seed}" if self.seed else ""
        return " ".join(filter(None, (self.kind, self.ratio, self.variant, seed)))

    def directory(self, workdir: Path) -> Path:
        return workdir / "stages" / "-".join(filter(None, (self.kind, self.ratio, self.fingerprint[:12])))


@dataclass(frozen=True)
class Finished:
    """What a finished stage left behind; ``stage.json`` of its directory, written last."""

    title: str
    fingerprint: str
    run_id: str
    model_id: str | None
    model_uri: str | None
    metrics: dict[str, float]
    facts: dict[str, Any]
    directory: Path

    @property
    def model(self) -> Path:
        return self.directory / "model"

    def save(self) -> None:
        values = {key: value for key, value in vars(self).items() if key != "directory"}
        write_json(self.directory / "stage.json", values)


def find_finished(stage: Stage, workdir: Path) -> Finished | None:
    """The finished run of exactly this stage, if there is one.

    Raises:
        UserError: its record is not what was written.
    """
    directory = stage.directory(workdir)
    path = directory / "stage.json"
    if not path.exists():
        return None
    cure = f"delete {directory}, and the stage is computed again"
    try:
        return Finished(directory=directory, **read_json(path, cure))
    except TypeError as error:
        raise UserError(f"{path} is not what was written; {cure}") from error
