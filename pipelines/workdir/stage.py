"""A stage: its fingerprint, its directory, and the record of a finished stage. Imports no torch."""

import hashlib
import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from distill.errors import UserError
from distill.io.files import check_digests, file_digests, read_record, write_record

# Each fingerprint includes the version of the stage's kind. A new version recomputes the stages of that kind and all
# stages that read them. Raise the version if a change gives different results for the same settings and data:
#   corruption, loss, optimizers, training loop, evaluation   baseline, long-baseline, teacher, distill
#   forward pass, Switch layer                                 baseline, long-baseline, teacher, answer, label, distill
#   generation                                                 baseline, long-baseline, teacher, answer, distill
#   soft labels                                                label, distill
#   initialisation, calibration                                init
#   intervals, tables                                          report
# or if the stage's own file computes something else. A change that only affects rounding needs no new version. Data
# preparation has versions of its own, in distill/data/key.py.
VERSIONS = {
    **{"baseline": 3, "long-baseline": 1, "teacher": 2, "init": 2, "answer": 1, "label": 2, "distill": 2},
    "report": 10,
}

# The files of a report, which are artifacts of its run and are copied to the top of the work directory.
REPORT_FILES = ("report.json", "report.md", "report.csv", "fraction_kept.png")
# Of a task with groups, of students that are measured at several lengths, and of students of several sizes.
OPTIONAL_REPORT_FILES = ("groups.csv", "groups.png", "steps.csv", "steps.png", "sizes.png")
# The files of a stage's directory that later stages and commands read.
_READ_LATER = (
    *("model/**/*", "*losses.json", "*answers.json", "answers/*", "labels/labels.json"),
    *(*REPORT_FILES, *OPTIONAL_REPORT_FILES, "documents.json", "examples.json"),
)


@dataclass(frozen=True)
class Stage:
    """One stage of one ratio and seed: a function of its settings, its inputs, the data and the version of its kind."""

    kind: str  # a key of VERSIONS
    settings: dict[str, Any]
    inputs: dict[str, "Stage"] = field(default_factory=dict)  # role -> the stage whose output is read
    data: str = ""  # fingerprint of the prepared data
    ratio: str | None = None
    seed: int | None = None
    variant: str | None = None  # the student in the config that this stage belongs to; the first if students share it

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that the stage depends on, the first 32 hexadecimal digits."""
        upstream = {role: stage.fingerprint for role, stage in self.inputs.items()}
        identity = json.dumps([self.kind, VERSIONS[self.kind], self.settings, upstream, self.data], sort_keys=True)
        return hashlib.sha256(identity.encode()).hexdigest()[:32]

    @property
    def command(self) -> str:
        """The command that computes this stage."""
        return _command(self.kind)

    @property
    def title(self) -> str:
        """Name in messages: ``teacher e8``, ``distill e8 hard-labels seed 1``. Seed 0 is omitted."""
        seed = f"seed {self.seed}" if self.seed else ""
        return " ".join(filter(None, (self.kind, self.ratio, self.variant, seed)))

    def directory(self, workdir: Path) -> Path:
        """The directory of this stage within the work directory."""
        return workdir / "stages" / "-".join(filter(None, (self.kind, self.ratio, self.fingerprint[:12])))


@dataclass(frozen=True)
class FinishedStage:
    """The record of a finished stage: ``stage.json`` in its directory, written after all other files.

    ``run_id``, ``model_id`` and ``model_uri`` are MLflow's. ``run_id`` is empty until MLflow has the whole stage.
    """

    title: str
    fingerprint: str
    run_id: str
    model_id: str | None
    model_uri: str | None
    metrics: dict[str, float]
    facts: dict[str, Any]
    directory: Path
    digests: dict[str, str] = field(default_factory=dict)  # file -> SHA-256, set by the first ``save``
    not_of_model: list[str] = field(default_factory=list)  # see Outcome

    @property
    def is_tracked(self) -> bool:
        """Whether MLflow has the whole stage."""
        return bool(self.run_id)

    @property
    def model(self) -> Path:
        """The directory of the stage's model."""
        return self.directory / "model"

    def read(self, name: str) -> Path:
        """The path of a file or directory of this stage, after a check of its SHA-256 digests.

        Raises:
            UserError: a file is missing or damaged. The message says how to recompute it.
        """
        digests = {file: sha for file, sha in self.digests.items() if file == name or file.startswith(f"{name}/")}
        check_digests(self.directory, digests, damage_hint(self.directory, self.title))
        return self.directory / name

    def save(self) -> "FinishedStage":
        """Write stage.json, and return its contents."""
        files = {path for pattern in _READ_LATER for path in self.directory.glob(pattern)}
        # Existing digests stay: a new digest would hide damage that happened after the stage finished.
        saved = replace(self, digests=self.digests or file_digests(self.directory, files))
        write_record(
            self.directory / "stage.json", {key: value for key, value in vars(saved).items() if key != "directory"}
        )
        return saved


def read_values(finished: FinishedStage, name: str = "losses") -> list[Any]:
    """The loss in nats per target token, or the answer, of every evaluated example, [E].

    Raises:
        UserError: the file is missing or damaged.
    """
    return json.loads(finished.read(f"{name}.json").read_text())


def inputs_of_kind(
    stage: Stage, inputs: dict[str, FinishedStage], kind: str, ratio: str | None = None, variant: str | None = None
) -> list[FinishedStage]:
    """The ``inputs`` of ``stage`` that have this kind, ratio and variant, one per seed."""
    wanted, upstream = (kind, ratio, variant), stage.inputs.items()
    return [inputs[role] for role, one in upstream if (one.kind, one.ratio, one.variant) == wanted]


def find_finished(stage: Stage, workdir: Path) -> FinishedStage | None:
    """The record of this stage if it is finished, else None.

    Raises:
        UserError: its stage.json is damaged or belongs to another stage.
    """
    directory = stage.directory(workdir)
    path, hint = directory / "stage.json", damage_hint(directory, stage.title)
    if not path.exists():
        return None
    values = read_record(path, hint)
    try:
        found = FinishedStage(directory=directory, **values)
    except TypeError as error:
        raise UserError(f"{path} is damaged: its keys are not those that were written; {hint}") from error
    if found.fingerprint != stage.fingerprint:
        raise UserError(f"{path} belongs to another stage ({found.title}, fingerprint {found.fingerprint}); {hint}")
    return found


def damage_hint(directory: Path, title: str) -> str:
    """The advice that messages about the files of a stage end with."""
    # A title begins with the kind and the ratio.
    kind, *ratio = title.split()[:2]
    command = _command(kind)
    option = f" --ratio {ratio[0]}" if command not in ("baseline", "report") else ""
    return f"delete {directory} and recompute it with: switch-distill {command} CONFIG{option} (and the same options)"


def _command(kind: str) -> str:
    return "baseline" if kind == "long-baseline" else kind
