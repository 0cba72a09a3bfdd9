"""The settings of a run that belong to this package. The defaults of labels and initialisation are the paper's."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from distill.errors import UserError

# Larger values are typing errors. They would end in an overflow or exhaust the memory.
Positive = Annotated[int, Field(gt=0, lt=2**31)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Size = Annotated[int, Field(gt=0, le=2**20)]  # of an object that must fit in memory
Source = Annotated[str, Field(min_length=1)]  # a directory, or a name on the hub
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, le=1e30, allow_inf_nan=False)]


class Section(BaseModel):
    """A part of a config: immutable, no unknown keys, no silent conversion of types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    # Old key -> new key. A renamed field has the old key as its serialization_alias, because fingerprints and stored
    # records use that key.
    renamed: ClassVar[dict[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse_former_keys(cls, values: Any) -> Any:
        for old, new in cls.renamed.items() if isinstance(values, dict) else ():
            if old in values:
                raise ValueError(f"{old} is now called {new}; rename it")
        return values


class DataConfig(Section):
    """The corpus, its splits, its tokenizer, and the amount of text."""

    corpus: str = Field(
        "stdlib", description="stdlib, text:GLOB, jsonl:GLOB, parquet:GLOB or hf:NAME[@REVISION][:CONFIG]"
    )
    text_column: str = Field("text", description="the column that holds the text, for jsonl, parquet and hf")
    split_by: Source | None = Field(
        None, description="unit of the split: directory (of files) or a column (of rows); null: each document"
    )
    bad_rows: Literal["refuse", "skip"] = Field(
        "refuse",
        description="rows without text or a value of split_by: stop with an error, or skip and count them",
    )
    tokenizer: str = Field("train", description="train, or a directory or hub name that transformers loads")
    vocabulary: Annotated[int, Field(ge=400, le=2**20)] = Field(
        4096, description="number of tokens of a trained tokenizer"
    )
    input_length: Annotated[int, Field(ge=8, le=2**16)] = Field(512, description="encoder tokens per example")
    noise_density: Annotated[float, Field(gt=0, lt=1)] = 0.15
    mean_span_length: Annotated[float, Field(ge=1, le=2**16, allow_inf_nan=False)] = 3.0
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.05, description="share of the documents; reported figures use it"
    )
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="share of the documents, also held out; for the choice of settings"
    )
    eval_split: Literal["test", "validation"] = Field(
        "test", description="split that models are evaluated on; choose settings on validation"
    )
    test_examples: Positive = Field(512, description="examples of eval_split that every model is evaluated on")
    train_tokens: Annotated[int, Field(gt=0, lt=2**53)] | None = Field(
        None, description="stop reading the corpus after this many training tokens; null: read all"
    )

    @model_validator(mode="after")
    def _splits_fit(self) -> "DataConfig":
        if self.test_fraction + self.validation_fraction >= 1:
            raise ValueError(
                f"test_fraction ({self.test_fraction}) and validation_fraction ({self.validation_fraction}) "
                "leave no document to train on"
            )
        if self.eval_split == "validation" and not self.validation_fraction:
            raise ValueError("eval_split is validation, but validation_fraction is 0; set a fraction of the documents")
        return self


class ModelConfig(Section):
    """The shape of a trained teacher, of the baseline, and of students without a size of their own: T5-Base."""

    d_model: Size = 768
    d_ff: Size = 3072
    d_kv: Size = 64
    num_heads: Size = 12
    num_layers: Annotated[int, Field(gt=0, le=1024)] = Field(
        12, description="number of encoder layers, and of decoder layers"
    )
    sparse_every: Positive = Field(2, description="every n-th FFN of a teacher is a Switch layer; 1: every FFN")
    feed_forward: Literal["relu", "gelu", "gated-gelu"] = "relu"
    tie_word_embeddings: bool = True
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _sparse_layers_fit(self) -> "ModelConfig":
        if self.num_layers % self.sparse_every:
            raise ValueError(f"num_layers ({self.num_layers}) must be a multiple of sparse_every ({self.sparse_every})")
        return self


class TrainingConfig(Section):
    """One training run. The settings have the same meaning for teacher, baseline and student."""

    steps: Count = Field(1000, description="optimizer steps; 0 leaves a loaded or pretrained teacher as it is")
    batch_size: Size = Field(128, description="examples per optimizer step, over all processes")
    micro_batch_size: Positive | None = Field(None, description="examples per forward pass of one process")
    optimizer: Literal["adamw", "adafactor", "muon"] = Field(
        "adamw", description="muon: Muon for the matrices inside the blocks, Adafactor for all other parameters"
    )
    learning_rate: PositiveFloat = 1e-3
    weight_decay: Annotated[float, Field(ge=0, le=1e30, allow_inf_nan=False)] = 0.0
    schedule: Literal["inverse_sqrt", "constant", "cosine"] = "inverse_sqrt"
    warmup_steps: Count = 100
    cooldown: Fraction = Field(
        0.0,
        description="last share of the steps, in which the rate falls to zero; not with cosine; 1: after the warm-up",
    )
    gradient_clip: PositiveFloat = 1.0
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="dropout in this training, outside of experts; null: that of the model"
    )
    log_every: Positive = 10
    evaluate_every: Positive | None = Field(None, description="steps between evaluations; null: at the end only")
    checkpoint_every: Positive = 500
    patience: Positive | None = Field(
        None,
        description="evaluations on the validation split without a better quality after which training stops, and the "
        "best weights are kept; null: all steps, and the last weights",
    )
    on_divergence: Literal["stop", "restart"] = Field(
        "stop",
        description="restart: from the last good checkpoint with half the learning rate, at most three times",
    )

    @model_validator(mode="after")
    def _lengths_fit(self) -> "TrainingConfig":
        if self.steps and self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must be smaller than steps ({self.steps})")
        if self.patience and not self.evaluate_every:
            raise ValueError("patience counts evaluations, but evaluate_every is null; set it")
        if self.schedule == "cosine" and self.cooldown:
            raise ValueError(
                "cooldown belongs to the schedules inverse_sqrt and constant; cosine already falls to zero"
            )
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of micro_batch_size ({self.micro_batch_size})"
            )
        return self

    def checkpoint_bytes(self, parameters: int) -> int:
        """The approximate size of a checkpoint: the weights in float32 and the optimizer's state."""
        return 4 * parameters * {"adamw": 3, "muon": 2, "adafactor": 1}[self.optimizer]

    def examples_per_pass(self, processes: int) -> int:
        """Examples per forward pass of one process. All processes together process exactly one batch.

        Raises:
            UserError: the batch size is not a multiple of micro-batch size times processes.
        """
        micro = self.micro_batch_size or self.batch_size // processes
        if not micro or self.batch_size % (micro * processes):
            raise UserError(
                f"training.batch_size {self.batch_size} cannot be shared by {processes} processes in micro-batches "
                f"of {micro}; make it a multiple of {max(micro, 1) * processes}"
            )
        return micro


class LabelsConfig(Section):
    """Cached sparse soft labels, made once for students of all seeds; see ``distill.data.cached_labels``."""

    renamed = {"words": "num_tokens"}

    form: Literal["top_k", "sampled"] = Field(
        "sampled", description="top_k: the most probable tokens; sampled: an unbiased sample"
    )
    num_tokens: Positive = Field(16, serialization_alias="words", description="token ids stored per target token")
    examples: Positive | None = Field(
        None, description="labelled examples; training repeats them if it needs more; null: as many as it needs"
    )
    seed: Count = Field(0, description="seed of the examples' order, their corruption, and the sample")


class DistillConfig(Section):
    """Hard and soft labels (section 4.2 and table 6 of the paper), and the student's training.

    If ``hard_fraction`` is 1, there are no soft labels, and their settings have no effect.
    """

    hard_fraction: Fraction = Field(0.75, description="weight of the hard labels; the soft labels have the rest")
    temperature: PositiveFloat = 1.0
    soft_start: Count = Field(0, description="first step with soft labels; earlier steps use hard labels only")
    balance: Literal["fixed", "by-token"] = Field(
        "fixed",
        description="by-token: the weight of a soft label is the teacher's probability of the hard label, in place of "
        "hard_fraction, unless that is 1",
    )
    targets: Literal["text", "teacher"] = Field(
        "text", description="hard labels: the targets of the data, or the teacher's answers to the inputs of a task"
    )
    beams: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="beams of the search for the teacher's answers; 1: greedy"
    )
    soft_labels: Literal["online", "cached"] = Field(
        "online", description="online: from the teacher at each step; cached: from disk"
    )
    labels: LabelsConfig = Field(LabelsConfig(), description="the cached labels")
    expert_parallel: bool = Field(False, description="whether processes divide the experts of the online teacher")
    training: TrainingConfig = TrainingConfig()
    lengths: list[Positive] = Field(
        [], description="numbers of steps below training.steps, after which student and long baseline are measured too"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "DistillConfig":
        if not self.training.steps:
            raise ValueError("training.steps is 0; a student needs at least one step")
        self._check_lengths()
        if self.beams > 1 and self.targets == "text":
            raise ValueError("beams belongs to targets teacher; with targets text nothing is generated for training")
        if self.soft_start >= self.training.steps:
            raise ValueError(
                f"soft_start ({self.soft_start}) must be smaller than training.steps ({self.training.steps}); "
                "for hard labels only, set hard_fraction to 1"
            )
        if self.expert_parallel and self.soft_labels == "cached":
            raise ValueError(
                "expert_parallel divides the experts of a teacher that runs at each step; set soft_labels to online, "
                "or expert_parallel to false"
            )
        return self

    def _check_lengths(self) -> None:
        """Each length is that of a valid training of its own.

        Raises:
            ValueError: a length is not.
        """
        if self.lengths and self.training.patience:
            raise ValueError("lengths are numbers of steps, but training.patience may stop earlier; remove one of them")
        if len(set(self.lengths)) < len(self.lengths):
            raise ValueError(f"lengths {self.lengths} contains duplicates")
        low, high = max(self.training.warmup_steps, self.soft_start), self.training.steps
        if wrong := [length for length in self.lengths if not low < length < high]:
            raise ValueError(
                f"lengths has {wrong[0]}; use numbers above training.warmup_steps and soft_start ({low}) and below "
                f"training.steps ({high})"
            )

    @property
    def runs_teacher(self) -> bool:
        """Whether the teacher runs during the student's training."""
        return self.hard_fraction < 1 and self.soft_labels == "online"

    def num_teacher_examples(self, steps: int) -> int:
        """Number of examples that the teacher processes: at the steps at which it runs, or to label them.

        Args:
            steps: that the student takes, which may be fewer than in the settings after early stopping.
        """
        if self.reads_cached_labels:
            return self.num_labelled_examples
        return max(steps - self.soft_start, 0) * self.training.batch_size if self.runs_teacher else 0

    @property
    def reads_cached_labels(self) -> bool:
        """Whether the student reads soft labels from disk; false if it has hard labels only."""
        return self.soft_labels == "cached" and self.hard_fraction < 1

    @property
    def num_labelled_examples(self) -> int:
        """Number of examples that the teacher labels."""
        return self.labels.examples or self.training.steps * self.training.batch_size
