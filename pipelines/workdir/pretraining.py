"""The config that ``pretrained`` names: its tokenizer and its finished stages in the same work directory."""

from pathlib import Path
from typing import NamedTuple

from distill.data.prepare import is_prepared, prepare_data
from distill.errors import UserError
from pipelines.config.run_config import RunConfig, load_config
from pipelines.workdir.commands import suggest
from pipelines.workdir.plan import plan
from pipelines.workdir.stage import Stage


class Pretraining(NamedTuple):
    """A config whose models are fine-tuned by another one."""

    source: str  # the value of ``pretrained``
    stages: list[Stage]


def with_pretrained_tokenizer(config: RunConfig, workdir: Path) -> tuple[RunConfig, Pretraining | None]:
    """The config with the tokenizer of its pre-training, and the pre-training; None if it has none.

    Raises:
        UserError: the data of the pre-training is not prepared, so none of its models is trained. The message names the
            command.
    """
    if config.pretrained is None:
        return config, None
    base, before = with_pretrained_tokenizer(load_config(config.pretrained), workdir)
    root = workdir / "data"
    if not is_prepared(base.data, root, base.task):
        command = suggest("run", config.pretrained, workdir=workdir)
        raise UserError(f"pretrained {config.pretrained} has no models in {workdir}; train them with: {command}")
    prepared = prepare_data(base.data, root, task=base.task)
    stages = plan(base, prepared.fingerprint, before.stages if before else ())
    data = config.data.model_copy(update={"tokenizer": str(Path(prepared.directory) / "tokenizer")})
    return config.model_copy(update={"data": data}), Pretraining(config.pretrained, stages)
