"""The settings of a task. Does not import torch."""

from typing import Annotated, Any

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from distill.config import PositiveFloat, Section, Source
from distill.metrics import METRICS
from distill.tasks.template import check_template, columns_of

Template = Annotated[str, Field(min_length=1), AfterValidator(check_template)]
Length = Annotated[int, Field(ge=2, le=2**16)]


class SourceConfig(Section):
    """One source of a mixture. Its templates and columns replace those of the task."""

    source: Source = Field(description="as task.examples")
    name: Source | None = Field(None, description="group of its examples if there is no column group; null: the source")
    weight: PositiveFloat = Field(1.0, description="times that an epoch contains each of its training examples")
    input: Template | None = None
    target: Template | None = None
    group: Source | None = None
    split_by: Source | None = None


# Tagged, so that a wrong value gives only the errors of its own kind. The locations of errors contain the tags.
EXAMPLES_TAGS = ("[source]", "[mixture]")
Examples = Annotated[
    Annotated[Source, Tag("[source]")]
    | Annotated[Annotated[list[SourceConfig], Field(min_length=1)], Tag("[mixture]")],
    Discriminator(lambda value: EXAMPLES_TAGS[isinstance(value, list)]),
]


class TaskConfig(Section):
    """Pairs of texts, their splits and their metrics. With this section, the stages do not use span corruption."""

    examples: Examples = Field(
        "stdlib:docstrings",
        description="jsonl:GLOB, csv:GLOB, tsv:GLOB, parquet:GLOB, hf:NAME[@REVISION][:CONFIG], stdlib:docstrings, "
        "babel:names, babel:dates, django:messages, or a list of sources with weights",
    )
    input: Template = Field("{source}", description="template over the columns, for example 'translate: {source}'")
    target: Template = Field("{target}", description="template over the columns")
    group: Source | None = Field(None, description="column with the group of a pair, for example its language")
    split_by: Source | None = Field(None, description="column whose hash decides the split of a pair; null: the input")
    metrics: list[str] = Field([], description=f"of the generated answers: {', '.join(METRICS)}")
    max_input: Length = Field(512, description="input tokens, with the final </s>; longer inputs are truncated")
    max_target: Length = Field(128, description="target tokens, with the final </s>; longer targets are truncated")
    unlabelled: Source | None = Field(
        None, description="a source of inputs without targets, for distill.targets: teacher"
    )

    @model_validator(mode="before")
    @classmethod
    def _default_template(cls, values: Any) -> Any:
        """The embedded sources have templates of their own."""
        if not isinstance(values, dict):
            return values
        examples = values.get("examples", "stdlib:docstrings")
        return {**DEFAULTS.get(examples, {}), **values} if isinstance(examples, str) else values

    @model_validator(mode="after")
    def _metrics_are_distinct(self) -> "TaskConfig":
        if len(set(self.metrics)) < len(self.metrics):
            raise ValueError(f"metrics {self.metrics} has a metric twice")
        return self

    @model_validator(mode="after")
    def _unlabelled_inputs_are_split_like_all(self) -> "TaskConfig":
        """Otherwise a held-out input of a source could be among them."""
        if self.unlabelled and any((one.input, one.split_by) != (self.input, self.split_by) for one in self.sources):
            raise ValueError("unlabelled needs sources with the task's own input and split_by; leave these out of them")
        return self

    @property
    def sources(self) -> list[SourceConfig]:
        """The sources of the examples, each with its own templates and columns."""
        given = [SourceConfig(source=self.examples)] if isinstance(self.examples, str) else self.examples
        own = {"input": self.input, "target": self.target, "group": self.group, "split_by": self.split_by}
        return [
            one.model_copy(update={name: value for name, value in own.items() if getattr(one, name) is None})
            for one in given
        ]

    @property
    def has_groups(self) -> bool:
        """Whether examples have groups: from a column, or the sources of a mixture."""
        return len(self.sources) > 1 or any(one.group for one in self.sources)


# Source -> the settings of a task that has it, unless the config has others.
DEFAULTS: dict[str, dict[str, Any]] = {
    "stdlib:docstrings": {"input": "{source}", "target": "{summary}"},
    "babel:names": {
        "input": "{locale}: {english}",
        "target": "{name}",
        "group": "locale",
        "split_by": "english",
    },
    "babel:dates": {
        "input": "{locale}: {date}",
        "target": "{written}",
        "group": "locale",
        "split_by": "date",
    },
    "django:messages": {
        "input": "{language}: {source}",
        "target": "{message}",
        "group": "language",
        "split_by": "source",
    },
}


def source_columns(source: SourceConfig, *, with_target: bool = True) -> list[str]:
    """The columns that a source must have, each once."""
    templates = [source.input or "", (source.target or "") if with_target else ""]
    wanted = [name for template in templates for name in columns_of(template)]
    return list(dict.fromkeys([*wanted, *filter(None, (source.group, source.split_by))]))
