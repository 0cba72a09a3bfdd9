"""The config that ``pretrained`` names: its data and its finished stages in the same work directory."""

from pathlib import Path
from typing import NamedTuple

from distill.data.prepare import is_prepared, prepare_data
from distill.data.prepared_data import PreparedData
from distill.errors import UserError
from pipelines.config.run_config import RunConfig, load_config
from pipelines.workdir.commands import suggest
from pipelines.workdir.plan import plan
from pipelines.workdir.stage import Stage


class Pretraining(NamedTuple):
    """A config whose models are fine-tuned by another one."""

    source: str  # the value of ``pretrained``
    data: PreparedData
    stages: list[Stage]

    @property
    def tokenizer(self) -> str:
        """The directory of the tokenizer that its models have."""
        return str(Path(self.data.directory) / "tokenizer")


def find_pretraining(config: RunConfig, workdir: Path) -> Pretraining | None:
    """The pre-training of a config; None if it has none.

    Raises:
        UserError: its data is not prepared, so none of its models is trained. The message names the command.
    """
    if config.pretrained is None:
        return None
    base = load_config(config.pretrained)
    base, before = with_pretrained_tokenizer(base, workdir)
    root = workdir / "data"
    if not is_prepared(base.data, root, base.task):
        command = suggest("run", config.pretrained, workdir=workdir)
        raise UserError(f"pretrained {config.pretrained} has no models in {workdir}; train them with: {command}")
    data = prepare_data(base.data, root, task=base.task)
    return Pretraining(config.pretrained, data, plan(base, data.fingerprint, before.stages if before else ()))


def with_pretrained_tokenizer(config: RunConfig, workdir: Path) -> tuple[RunConfig, Pretraining | None]:
    """The config with the tokenizer of its pre-training, and the pre-training.

    Raises:
        UserError: see ``find_pretraining``.
    """
    found = find_pretraining(config, workdir)
    if found is None:
        return config, None
    data = config.data.model_copy(update={"tokenizer": found.tokenizer})
    return config.model_copy(update={"data": data}), found
