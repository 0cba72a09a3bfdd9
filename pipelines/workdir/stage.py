"""What a stage is: its fingerprint, its directory, and how a finished one is recognised. Needs no torch."""

import hashlib
import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from distill.errors import UserError
from distill.io.files import check_digests, file_digests, read_record, write_record

# Each fingerprint holds the version of the stage's kind. A stage of another version is computed again, and so is every
# stage that reads it. Raise the version of a kind where a change gives other results for the same settings and data:
#   corruption, loss, optimizers, training loop, evaluation   baseline, teacher, distill
#   forward pass, Switch layer                                 baseline, teacher, label, distill
#   soft labels                                                label, distill
#   initialisation, calibration                                init
#   intervals, tables                                          report
# and where the stage's own file changes what it computes. A change of rounding alone needs no new version. Data
# preparation has a version of its own, in distill/data/prepare.py.
VERSIONS = {"baseline": 2, "teacher": 2, "init": 2, "label": 2, "distill": 2, "report": 6}

# What later stages and commands read of a stage's directory.
_READ_LATER = ("model/**/*", "*losses.json", "labels/labels.json", "report.*", "documents.json", "fraction_kept.png")


@dataclass(frozen=True)
class Stage:
    """One stage of one ratio and seed: a function of its settings, its inputs, the data and the version of its kind."""

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
        identity = json.dumps([self.kind, VERSIONS[self.kind], self.settings, upstream, self.data], sort_keys=True)
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
    """What a finished stage left behind; ``stage.json`` of its directory, written when all else is on disk.

    Run and model are MLflow's; until it has all of the stage, ``run_id`` is empty.
    """

    title: str
    fingerprint: str
    run_id: str
    model_id: str | None
    model_uri: str | None
    metrics: dict[str, float]
    facts: dict[str, Any]
    directory: Path
    digests: dict[str, str] = field(default_factory=dict)  # SHA-256 of files; old stages have none
    not_of_model: list[str] = field(default_factory=list)  # see Outcome

    @property
    def is_tracked(self) -> bool:
        """Whether MLflow has all of it."""
        return bool(self.run_id)

    @property
    def model(self) -> Path:
        return self.directory / "model"

    def read(self, name: str) -> Path:
        """A file or directory that this stage left, for another to read: its bytes are those that it left.

        Raises:
            UserError: a file is missing or damaged; the message says how to make it again.
        """
        digests = {file: sha for file, sha in self.digests.items() if file == name or file.startswith(f"{name}/")}
        check_digests(self.directory, digests, _cure(self.directory, self.title))
        return self.directory / name

    def save(self) -> "Finished":
        """Write stage.json; returns what it says."""
        files = {path for pattern in _READ_LATER for path in self.directory.glob(pattern)}
        # Those that it has stay: what was damaged since must not be blessed.
        saved = replace(self, digests=self.digests or file_digests(self.directory, files))
        write_record(
            self.directory / "stage.json", {key: value for key, value in vars(saved).items() if key != "directory"}
        )
        return saved


def read_losses(finished: Finished, name: str = "losses") -> list[float]:
    """The loss of every evaluated example that a stage measured.

    Raises:
        UserError: the file is not what the stage left.
    """
    return json.loads(finished.read(f"{name}.json").read_text())


def of_kind(
    stage: Stage, inputs: dict[str, Finished], kind: str, ratio: str | None = None, variant: str | None = None
) -> list[Finished]:
    """The ``inputs`` of ``stage`` of one kind, ratio and variant, one per seed."""
    wanted, upstream = (kind, ratio, variant), stage.inputs.items()
    return [inputs[role] for role, one in upstream if (one.kind, one.ratio, one.variant) == wanted]


def find_finished(stage: Stage, workdir: Path) -> Finished | None:
    """The finished run of exactly this stage, if there is one.

    Raises:
        UserError: its stage.json is damaged, or that of another stage.
    """
    directory = stage.directory(workdir)
    path, cure = directory / "stage.json", _cure(directory, stage.title)
    if not path.exists():
        return None
    values = read_record(path, cure)
    try:
        found = Finished(directory=directory, **values)
    except TypeError as error:
        raise UserError(f"{path} is not what was written; {cure}") from error
    if found.fingerprint != stage.fingerprint:
        raise UserError(f"{path} is that of another stage ({found.title}, fingerprint {found.fingerprint}); {cure}")
    return found


def _cure(directory: Path, title: str) -> str:
    """``title`` begins with the kind, which is a command's name, and the ratio."""
    kind, *ratio = title.split()[:2]
    option = f" --ratio {ratio[0]}" if kind not in ("baseline", "report") else ""
    return f"delete {directory} and make it again with: switch-distill {kind} CONFIG{option} (and the same options)"
