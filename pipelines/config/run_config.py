"""The config of a run and its validation. Every error is one sentence."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from distill.config import (
    DataConfig,
    DistillConfig,
    ModelConfig,
    Positive,
    PositiveFloat,
    Section,
    Size,
    Source,
    TrainingConfig,
)
from distill.errors import UserError
from distill.tasks.config import TaskConfig
from pipelines.config.config_values import merge, override_value, read_values
from pipelines.config.error_sentence import error_sentence
from students.config import StudentConfig
from teachers.config import TeacherConfig


class BaselineConfig(Section):
    """The dense model that gains are measured against.

    It has the training settings of the teachers (teacher.training), or those of the student (distill.training) if no
    teacher is trained, and may have a learning rate of its own. The long baseline continues from its weights after as
    many steps as the teachers take, with the settings of the student.
    """

    steps: Positive | None = Field(
        None, description="at most the steps of the teachers, if they are trained; null: the steps of the student"
    )
    learning_rate: PositiveFloat | None = Field(None, description="replaces that of the training settings above")
    checkpoint: Source | None = Field(None, description="a T5 to start from, for example a public one; null: none")
    d_ff: Size | None = Field(
        None,
        description="neurons of each FFN of the baseline, for example those of a wider student; null: model.d_ff",
    )


class ReportConfig(Section):
    """The bootstrap of the report."""

    resamples: Annotated[int, Field(ge=100, le=50_000)] = 10_000


class RunConfig(Section):
    """Everything that a run depends on."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")] = "run"
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, max_length=1000)] = [0]
    precision: Literal["auto", "bfloat16", "float32"] = Field(
        "auto",
        description="of training and evaluation; auto: bfloat16 autocast if the hardware has instructions for it",
    )
    jobs: Annotated[int, Field(ge=1, le=256)] = Field(
        1, description="processes that compute baseline and ratios in parallel, each with its share of the cores"
    )
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    teacher: TeacherConfig
    student: StudentConfig = StudentConfig()
    distill: DistillConfig = DistillConfig()
    baseline: BaselineConfig = BaselineConfig()
    report: ReportConfig = ReportConfig()
    task: TaskConfig | None = Field(None, description="pairs of texts in place of span corruption")
    pretrained: Source | None = Field(
        None, description="a CONFIG in the same work directory, to fine-tune its teachers and its baseline on the task"
    )
    variants: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")], dict[str, Any]] = Field(
        {}, description="several students of each teacher: name -> changes of the sections student and distill"
    )

    @property
    def students(self) -> list["RunConfig"]:
        """The config of each student of a teacher: one per variant, or one if there are no variants."""
        return [self.of_variant(name) for name in self.variants or [None]]

    def of_variant(self, name: str | None) -> "RunConfig":
        """The config of one variant, which has no ``variants`` itself. None gives this config.

        Raises:
            ValidationError: the changes of the variant do not give a valid config.
        """
        if name is None:
            return self
        values = self.model_dump(exclude={"variants"})
        return RunConfig.model_validate(merge(values, self.variants[name]))

    def trains_teacher(self, ratio: str) -> bool:
        """Whether this run trains or fine-tunes the teacher of a ratio, or uses it as it is."""
        loaded = ratio in self.teacher.checkpoints
        return self.teacher.training.steps > 0 and (self.task is not None or not loaded)

    @property
    def trains_teachers(self) -> bool:
        """Whether this run trains or fine-tunes any teacher."""
        return any(self.trains_teacher(ratio) for ratio in self.teacher.ratios)

    @property
    def baseline_training(self) -> TrainingConfig:
        """Training settings of the baseline: those of the teachers, or of the student if no teacher is trained.

        ``baseline.learning_rate`` replaces their learning rate.
        """
        training = self.teacher.training if self.trains_teachers else self.distill.training
        rate = self.baseline.learning_rate
        return training if rate is None else training.model_copy(update={"learning_rate": rate})

    @property
    def baseline_steps(self) -> int:
        """Training steps of the baseline: ``baseline.steps``, or as many as the student takes."""
        return self.baseline.steps or self.distill.training.steps

    @model_validator(mode="after")
    def _variants_are_students(self) -> "RunConfig":
        for name, changes in self.variants.items():
            if others := sorted(set(changes) - {"student", "distill"}):
                raise ValueError(
                    f"variants.{name} changes {others[0]}; variants share data, teachers and baseline, "
                    "so only student and distill may differ"
                )
            try:
                self.of_variant(name)
            except ValidationError as error:
                raise ValueError(f"in variants.{name}, {error_sentence(RunConfig, error)}") from None
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> "RunConfig":
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {self.seeds} contains duplicates")
        if self.teacher.checkpoints and self.data.tokenizer == "train":
            raise ValueError(
                "teacher.checkpoints are loaded models, so data.tokenizer must name their tokenizer, not train"
            )
        if self.teacher.experts and not self.teacher.training.steps and not self.pretrained:
            raise ValueError("teacher.training.steps is 0, but teacher.experts start from scratch; raise it")
        if self.baseline.d_ff and (self.baseline.checkpoint or self.pretrained):
            loaded = "baseline.checkpoint" if self.baseline.checkpoint else "pretrained"
            raise ValueError(f"baseline.d_ff is for a new baseline, but {loaded} has a trained one; remove one of them")
        _check_task(self)
        if self.teacher.experts:  # the sizes of loaded teachers are known later (pipelines.workdir.loaded_models)
            self.student.check_sizes(self.model.d_ff, self.model.num_layers, "the teacher")
        return self


def _check_task(config: RunConfig) -> None:
    """Check the entries that belong to tasks, and early stopping.

    Raises:
        ValueError: an entry does not fit the others.
    """
    if config.task is None:
        if config.pretrained:
            raise ValueError("pretrained is fine-tuned on a task, but there is no section task; add it")
        if config.distill.targets == "teacher":
            raise ValueError("distill.targets is teacher, but only a task has inputs to answer; add the section task")
    if config.pretrained and config.teacher.checkpoints:
        raise ValueError("pretrained has the teachers to fine-tune; remove teacher.checkpoints, or pretrained")
    if config.pretrained and config.baseline.checkpoint:
        raise ValueError("pretrained has the baseline to fine-tune; remove baseline.checkpoint, or pretrained")
    for name, training in (("teacher", config.teacher.training), ("distill", config.distill.training)):
        if training.patience and not config.data.validation_fraction:
            raise ValueError(
                f"{name}.training.patience needs validation examples, but data.validation_fraction is 0; set a fraction"
            )


def load_config(
    source: str, overrides: list[str] | tuple[str, ...] = (), seed: int | None = None, *, by: tuple[str, ...] = ()
) -> RunConfig:
    """Load a config: a preset or a YAML file, then the overrides ``a.b=value``, then ``seed`` in place of ``seeds``.

    A YAML file may start from a preset (``preset: demo``) and a recipe (``recipe: best``). Later entries of this list
    take precedence: the preset, the recipe in the file, the other keys of the file, the override ``recipe=best``, the
    other overrides. ``by`` has the configs whose ``pretrained`` names this one.

    Raises:
        UserError: one sentence that names the key, the value and what is allowed.
    """
    values = read_values(source)
    for override in sorted(overrides, key=lambda override: not override.startswith("recipe=")):
        override_value(values, override)
    if seed is not None:
        values["seeds"] = [seed]
    _inherit(values, (*by, source))
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{source}: {error_sentence(RunConfig, error)}") from None
    # Not checked in RunConfig, because one of several variants may have the targets of the data.
    if config.task and config.task.unlabelled and all(one.distill.targets == "text" for one in config.students):
        cure = "set distill.targets: teacher"
        raise UserError(f"{source}: task.unlabelled needs the teacher's answers as targets; {cure}")
    _check_baseline(config, source)
    return config


def _check_baseline(config: RunConfig, source: str) -> None:
    """Raise UserError if ``baseline.steps`` exceeds its training, or the baseline ends within the warm-up: a weak one.

    Not checked in RunConfig, because variants, which are RunConfigs too, share the baseline and may have fewer steps.
    """
    training, section = config.baseline_training, "teacher.training" if config.trains_teachers else "distill.training"
    steps = config.baseline.steps
    if steps and steps > training.steps:
        limit, cure = f"steps is {training.steps}", f"at most {training.steps}"
    elif config.baseline_steps <= training.warmup_steps:
        limit, cure = f"warmup_steps is {training.warmup_steps}", "more than that"
    else:
        return
    given = steps or f"null, which means the student's {config.baseline_steps} steps"
    raise UserError(f"{source}: baseline.steps is {given}, but {section}.{limit}; set baseline.steps to {cure}")


def _inherit(values: dict[str, Any], chain: tuple[str, ...]) -> None:
    """Give a config with ``pretrained`` the shape and, unless it names some, the teachers of that other config.

    ``chain`` ends with the config; before it are those that name it, directly or indirectly.
    """
    source, teacher = values.get("pretrained"), values.get("teacher", {})
    if not isinstance(source, str) or not isinstance(teacher, dict) or values.get("task") is None:
        return  # validation refuses it
    if source in chain:
        raise UserError(f"pretrained is a circle: {' -> '.join((*chain, source))}; name a config that is trained first")
    base, data = load_config(source, by=chain), values.get("data")
    if isinstance(data, dict) and data.get("tokenizer", "train") != "train":
        raise UserError(f"the models of pretrained {source} have a tokenizer already; remove data.tokenizer")
    model = base.model.model_dump()
    given = values.get("model")
    if isinstance(given, dict) and (differing := [name for name in given if given[name] != model.get(name)]):
        raise UserError(f"model.{differing[0]} is not that of pretrained {source}; remove the section model")
    values["model"] = model
    experts = teacher.get("experts") or base.teacher.experts
    if isinstance(experts, list) and (unknown := [n for n in experts if n not in base.teacher.experts]):
        known = ", ".join(map(str, base.teacher.experts)) or "none (it loads its teachers; use teacher.checkpoints)"
        raise UserError(f"teacher.experts has {unknown[0]}, but pretrained {source} has teachers of {known} experts")
    values["teacher"] = {**teacher, "experts": experts}
