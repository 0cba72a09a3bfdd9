"""The settings of teachers. The paper's values are the defaults."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from distill.config import Section, Size, Source, TrainingConfig

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def _bytes(value: Any) -> Any:
    """A size such as ``8GB`` in bytes. Other values are returned unchanged."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?) ?(KB|MB|GB|TB)", value.strip().upper())
    if match is None:
        raise ValueError(f"{value!r:.40} is no size such as 8GB or 500MB, and no number of bytes")
    return int(float(match[1]) * _UNITS[match[2]])


MINIMUM_CAPACITY = 4  # tokens per expert
# Above this many weights in another dtype than the tokens', experts are cast one at a time, to save memory.
CAST_AT_ONCE = 2**26


class SwitchConfig(Section):
    """The settings of Switch layers, for trained and loaded teachers."""

    capacity_factor_train: Annotated[float, Field(gt=0, le=4096, allow_inf_nan=False)] = 1.25
    capacity_factor_eval: Annotated[float, Field(gt=0, le=4096, allow_inf_nan=False)] = 2.0
    jitter: Annotated[float, Field(ge=0, lt=1)] = Field(0.01, description="noise on the router's input, in training")
    expert_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class TeacherConfig(SwitchConfig):
    """The teachers of a comparison: trained here (``experts``) or loaded (``checkpoints``)."""

    experts: list[Annotated[int, Field(ge=2, le=4096)]] = Field(
        [], description="numbers of experts; one trained teacher for each"
    )
    checkpoints: dict[Annotated[str, Field(pattern=r"^e[1-9][0-9]{0,3}$")], Source] = Field(
        {}, description="ratio -> directory or hub name of a transformers Switch model, for example e8: DIR"
    )
    load_balancing_weight: Annotated[float, Field(ge=0, le=1e30, allow_inf_nan=False)] = Field(
        0.01, description="alpha of the paper"
    )
    evaluation_batch_size: Size = Field(64, description="examples per batch; expert capacity depends on it")
    memory: Annotated[int, BeforeValidator(_bytes), Field(ge=1000, le=10**18)] | None = Field(
        None,
        description="memory for a teacher that does not train, such as 8GB; a larger one runs layer by layer; "
        "null: what is free",
    )
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def _ratios_are_distinct(self) -> "TeacherConfig":
        if not self.ratios:
            raise ValueError("name at least one teacher, in experts (trained here) or checkpoints (loaded)")
        if len(set(self.experts)) < len(self.experts):
            raise ValueError(f"experts {self.experts} has a size twice")
        if both := {f"e{n}" for n in self.experts} & set(self.checkpoints):
            raise ValueError(f"{', '.join(sorted(both))} is both in experts and in checkpoints")
        return self

    @property
    def ratios(self) -> dict[str, int]:
        """Ratio name -> number of experts, smallest first."""
        sizes = [*self.experts, *(int(name[1:]) for name in self.checkpoints)]
        return {f"e{size}": size for size in sorted(sizes)}
