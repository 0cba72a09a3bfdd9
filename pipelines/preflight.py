"""What is wrong with a run is said before anything is written: models that cannot be loaded, sizes that cannot be.

Needs no torch, so that it is said at once.
"""

import os
from collections.abc import Iterable

from distill.errors import UserError
from distill.prepared_data import PreparedData, example_lengths
from pipelines.config import RunConfig
from pipelines.space import parameters
from pipelines.stage import Stage
from students.checkpoint import check_dense
from teachers.checkpoint import check_teacher

_LAUNCHERS = ("DEEPSPEED", "MEGATRON_LM", "FSDP")
# The one value of each that there is a way to train with; the model is one group, see distill.sharding.
_FSDP = {
    "FSDP_VERSION": "2",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
    "FSDP_AUTO_WRAP_POLICY": "no_wrap",
}


def check_launch() -> int:
    """How many processes there are.

    Raises:
        UserError: ``accelerate launch`` was asked for what the training loop does not do.
    """
    asked = {name: os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true" for name in _LAUNCHERS}
    refused = [f"--use_{name.lower()}" for name in _LAUNCHERS if asked[name] and name != "FSDP"]
    if asked["FSDP"]:
        options = {name: os.environ.get(name, only) for name, only in _FSDP.items()}
        refused += [f"--{name.lower()} {value}" for name, value in options.items() if value.lower() != _FSDP[name]]
    if refused:
        raise UserError(
            f"accelerate launch {refused[0]} is not supported; use --multi_gpu, or --use_fsdp --fsdp_version 2 and of "
            "the other options of FSDP their defaults"
        )
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_models(config: RunConfig, stages: Iterable[Stage] | None = None) -> dict[str, int]:
    """Read the models that ``stages`` load; None: all that the config names.

    Returns:
        The words of each, by how messages name it.

    Raises:
        UserError: one cannot be loaded, or is not what the config calls it.
    """
    words, wanted = {}, None if stages is None else {(stage.kind, stage.ratio) for stage in stages}
    if (source := config.baseline.checkpoint) and (wanted is None or ("baseline", None) in wanted):
        what = f"baseline.checkpoint {source!r}"
        words[what] = check_dense(source, what)
    for ratio, source in config.teacher.checkpoints.items():
        if wanted is not None and ("teacher", ratio) not in wanted:
            continue
        found = check_teacher(source)
        if f"e{found['num_experts']}" != ratio:
            raise UserError(
                f"teacher.checkpoints.{ratio} {source!r} has {found['num_experts']} experts; "
                f"name it e{found['num_experts']}"
            )
        words[f"teacher {source!r}"] = found["vocab_size"]
    return words


def check_data(config: RunConfig, data: PreparedData, words: dict[str, int]) -> None:
    """Whether the data is enough for what is asked of it, and its tokenizer the models' own.

    Args:
        words: of loaded models, see ``check_models``.

    Raises:
        UserError: it is not.
    """
    raw, _ = example_lengths(data, config.data)
    data.layout(config.data)  # which raises where there are too few documents
    for what, size in words.items():
        if size < data.words.size:
            raise UserError(
                f"{what} has {size} words, the tokenizer {data.words.size}; set data.tokenizer to the model's own"
            )
    students = config.students
    kept = max((one.distill.labels.words for one in students if one.distill.reads_cached_labels), default=0)
    if kept > data.vocab_size:
        raise UserError(
            f"distill.labels.words is {kept}, but the vocabulary has only {data.vocab_size} words; ask for fewer"
        )
    examples = data.parts["train"].tokens // raw
    wanted = max((one.student.calibration_examples for one in students if one.student.is_calibrated), default=0)
    if wanted + min(-(-wanted // 4), examples) > examples:
        raise UserError(
            f"student.calibration_examples is {wanted}, but of the {examples} training examples a quarter as "
            f"many more are needed to measure on; ask for at most {examples * 4 // 5}"
        )


def check_size(config: RunConfig, processes: int) -> None:
    """Whether the machine's memory could hold the weights of the models, and one batch of hidden states.

    A bound from below: what passes may still be too large.

    Raises:
        UserError: batches cannot be shared by the processes, or it could not.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for training in (config.teacher.training, *(student.distill.training for student in config.students)):
        examples = training.examples_per_pass(processes)
        states = 4 * examples * config.data.input_length * config.model.d_model * config.model.num_layers
        if states > memory and not config.teacher.checkpoints:
            raise UserError(
                f"a pass of {examples} examples of data.input_length {config.data.input_length} takes more than "
                f"{states / 1e9:,.0f} GB, this machine has {memory / 1e9:,.0f} GB; set training.micro_batch_size lower"
            )
    size = parameters(config.model, config.data.vocabulary, max(config.teacher.experts, default=1))
    if (needed := 4 * size) > memory and config.teacher.experts:
        raise UserError(
            f"a teacher of this model and {max(config.teacher.experts)} experts takes {needed / 1e9:,.0f} GB, this "
            f"machine has {memory / 1e9:,.0f} GB; choose a smaller model or fewer teacher.experts"
        )
