"""What a run may set in this package, with the paper's values as defaults."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from distill.errors import UserError

# What is larger than this is a slip of the hand, and would end in an overflow or in a process that is killed.
Positive = Annotated[int, Field(gt=0, lt=2**31)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Size = Annotated[int, Field(gt=0, le=2**20)]  # of something that is in memory as a whole
Source = Annotated[str, Field(min_length=1)]  # of a model: a directory, or a name on the hub
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, le=1e30, allow_inf_nan=False)]


class Section(BaseModel):
    """A part of a config: immutable, no unknown keys, no silent conversion of types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    # Former key -> its name today. A renamed field keeps the former one as its serialization_alias, under which
    # fingerprints and stored records have it.
    renamed: ClassVar[dict[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse_former_keys(cls, values: Any) -> Any:
        for old, new in cls.renamed.items() if isinstance(values, dict) else ():
            if old in values:
                raise ValueError(f"{old} is now called {new}; rename it")
        return values


class DataConfig(Section):
    """Which text, how it is split and cut into tokens, and how much of it is used."""

    renamed = {
        "tuning_fraction": "validation_fraction (and the old validation_fraction is now test_fraction)",
        "validation_examples": "test_examples (and the old validation_fraction is now test_fraction)",
        "measured": "eval_split (test for the old validation, validation for the old tuning)",
    }

    corpus: str = Field(
        "stdlib", description="stdlib, text:GLOB, jsonl:GLOB, parquet:GLOB or hf:NAME[@REVISION][:CONFIG]"
    )
    text_column: str = Field("text", description="the column that holds the text, for jsonl, parquet and hf")
    split_by: Source | None = Field(
        None, description="what is held out as a whole: directory (of files), a column (of rows); null: each document"
    )
    bad_rows: Literal["refuse", "skip"] = Field(
        "refuse", description="a row without text, or without a value of split_by: refuse it, or skip it and count it"
    )
    tokenizer: str = Field("train", description="train, or a directory or hub name that transformers loads")
    vocabulary: Annotated[int, Field(ge=400, le=2**20)] = Field(4096, description="tokens of a trained tokenizer")
    input_length: Annotated[int, Field(ge=8, le=2**16)] = Field(512, description="tokens in the encoder")
    noise_density: Annotated[float, Field(gt=0, lt=1)] = 0.15
    mean_span_length: Annotated[float, Field(ge=1, le=2**16, allow_inf_nan=False)] = 3.0
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(0.05, description="of the documents; figures are of it")
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="of the documents, held out too; settings are chosen on it"
    )
    eval_split: Literal["test", "validation"] = Field(
        "test", description="which held-out part models are evaluated on; settings are chosen on validation"
    )
    test_examples: Positive = Field(512, description="examples of eval_split that every model is evaluated on")
    train_tokens: Annotated[int, Field(gt=0, lt=2**53)] | None = Field(
        None, description="stop reading the corpus after this many; null: all"
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> "DataConfig":
        if self.test_fraction + self.validation_fraction >= 1:
            raise ValueError(
                f"test_fraction ({self.test_fraction}) and validation_fraction ({self.validation_fraction}) "
                "leave no document to train on"
            )
        if self.eval_split == "validation" and not self.validation_fraction:
            raise ValueError("eval_split is validation, but validation_fraction is 0; set a fraction of the documents")
        return self


class ModelConfig(Section):
    """The shape shared by a trained teacher, its students and the baseline. Defaults are T5-Base."""

    d_model: Size = 768
    d_ff: Size = 3072
    d_kv: Size = 64
    num_heads: Size = 12
    num_layers: Annotated[int, Field(gt=0, le=1024)] = Field(
        12, description="in the encoder, and as many in the decoder"
    )
    sparse_every: Positive = Field(2, description="every n-th FFN of a teacher is a Switch layer; 1: all of them")
    feed_forward: Literal["relu", "gelu", "gated-gelu"] = "relu"
    tie_word_embeddings: bool = True
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _sparse_layers_fit(self) -> "ModelConfig":
        if self.num_layers % self.sparse_every:
            raise ValueError(f"num_layers ({self.num_layers}) must be a multiple of sparse_every ({self.sparse_every})")
        return self


class TrainingConfig(Section):
    """One training run. The same settings mean the same thing for teacher, baseline and student."""

    steps: Positive = 1000
    batch_size: Size = Field(128, description="examples per optimizer step, over all processes")
    micro_batch_size: Positive | None = Field(None, description="examples per forward pass of one process")
    optimizer: Literal["adamw", "adafactor", "muon"] = Field(
        "adamw", description="muon: for the matrices inside the blocks, with Adafactor for everything else"
    )
    learning_rate: PositiveFloat = 1e-3
    weight_decay: Annotated[float, Field(ge=0, le=1e30, allow_inf_nan=False)] = 0.0
    schedule: Literal["inverse_sqrt", "cosine"] = "inverse_sqrt"
    warmup_steps: Count = 100
    cooldown: Fraction = Field(
        0.0, description="last part of the steps in which inverse_sqrt falls to zero; 1: all after the warm-up"
    )
    gradient_clip: PositiveFloat = 1.0
    log_every: Positive = 10
    evaluate_every: Positive | None = Field(None, description="steps between evaluations; null: at the end only")
    checkpoint_every: Positive = 500
    on_divergence: Literal["stop", "restart"] = Field(
        "stop", description="restart: from the last good checkpoint with half the learning rate, at most three times"
    )

    @model_validator(mode="after")
    def _lengths_fit(self) -> "TrainingConfig":
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must be smaller than steps ({self.steps})")
        if self.schedule == "cosine" and self.cooldown:
            raise ValueError("cooldown belongs to schedule inverse_sqrt; cosine already falls to zero")
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of micro_batch_size ({self.micro_batch_size})"
            )
        return self

    def checkpoint_bytes(self, parameters: int) -> int:
        """About the size of a checkpoint: the weights in float32, and what the optimizer keeps of each."""
        return 4 * parameters * {"adamw": 3, "muon": 2, "adafactor": 1}[self.optimizer]

    def examples_per_pass(self, processes: int) -> int:
        """Examples of one forward pass of one process, so that all processes share a batch exactly.

        Raises:
            UserError: they cannot.
        """
        micro = self.micro_batch_size or self.batch_size // processes
        if not micro or self.batch_size % (micro * processes):
            raise UserError(
                f"training.batch_size {self.batch_size} cannot be shared by {processes} processes in micro-batches "
                f"of {micro}; make it a multiple of {max(micro, 1) * processes}"
            )
        return micro


class LabelsConfig(Section):
    """Sparse soft labels that the teacher makes once, for students of all seeds; see ``distill.data.cached_labels``."""

    renamed = {"words": "num_tokens"}

    form: Literal["top_k", "sampled"] = Field("sampled", description="the likeliest tokens, or an unbiased sample")
    num_tokens: Positive = Field(
        16, serialization_alias="words", description="of the vocabulary, stored per target token"
    )
    examples: Positive | None = Field(None, description="null: as many as the training takes; it goes round fewer")
    seed: Count = Field(0, description="of the examples' order and corruption, and of the sample")


class DistillConfig(Section):
    """Hard and soft labels (section 4.2 and table 6 of the paper), what else of the teacher, and the training.

    With ``hard_fraction`` 1 and nothing to match, the teacher is not read at all, and what concerns it has no effect.
    """

    renamed = {"draws": "num_sampled_experts"}

    hard_fraction: Fraction = Field(0.75, description="weight of the hard labels; the rest goes to the soft ones")
    temperature: PositiveFloat = 1.0
    soft_start: Count = Field(0, description="step at which soft labels start; before it, hard labels alone")
    teacher_routing: Literal["top_1", "mixture", "sampled"] = Field(
        "top_1", description="experts that answer the student: the router's choice, all by its weights, or drawn ones"
    )
    num_sampled_experts: Positive = Field(
        1, serialization_alias="draws", description="that sampled draws for each token, anew at each step"
    )
    match: list[Literal["hidden", "ffn"]] = Field(
        [], description="besides logits: hidden states of all blocks, outputs of the FFNs in place of Switch layers"
    )
    match_weight: PositiveFloat = Field(1.0, description="of what is matched, beside the loss of a target token")
    match_steps: Positive | None = Field(None, description="in which match_weight falls to zero; null: it stays")
    soft_labels: Literal["online", "cached"] = Field("online", description="from the teacher at each step, or stored")
    labels: LabelsConfig = Field(LabelsConfig(), description="what is stored")
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> "DistillConfig":
        if self.soft_start >= self.training.steps:
            raise ValueError(
                f"soft_start ({self.soft_start}) must be smaller than training.steps ({self.training.steps}); "
                "for hard labels alone set hard_fraction to 1"
            )
        if self.num_sampled_experts > 1 and self.teacher_routing != "sampled":
            raise ValueError(
                f"num_sampled_experts belongs to teacher_routing sampled; {self.teacher_routing} samples no experts"
            )
        if self.soft_labels == "cached" and self.match:
            raise ValueError("match needs the teacher at every step; set soft_labels to online or match to []")
        if self.soft_labels == "cached" and self.teacher_routing == "sampled":
            raise ValueError(
                "teacher_routing sampled draws anew at every step, but cached labels are made once; "
                "set soft_labels to online or teacher_routing to mixture"
            )
        return self

    @property
    def runs_teacher(self) -> bool:
        """Whether the teacher runs while the student is trained."""
        return bool(self.match) or (self.hard_fraction < 1 and self.soft_labels == "online")

    @property
    def num_teacher_examples(self) -> int:
        """How many examples the teacher sees for the student: of the steps at which it runs, or those it labels."""
        if self.reads_cached_labels:
            return self.num_labelled_examples
        steps = self.training.steps
        start = self.soft_start if self.hard_fraction < 1 else steps
        matched = min(self.match_steps or steps, start) if self.match else 0
        return (steps - start + matched) * self.training.batch_size

    @property
    def reads_cached_labels(self) -> bool:
        """Whether a student's soft labels come from disk; with hard labels alone it has none."""
        return self.soft_labels == "cached" and self.hard_fraction < 1

    @property
    def num_labelled_examples(self) -> int:
        """How many examples the teacher labels."""
        return self.labels.examples or self.training.steps * self.training.batch_size
