"""What is wrong with a run is said before anything is written: data that is not enough, sizes that cannot be.

Needs no torch, so that it is said at once.
"""

import os

from distill.data.prepared_data import PreparedData, example_lengths
from distill.errors import UserError
from distill.model_size import parameters
from pipelines.config.run_config import RunConfig
from pipelines.workdir.loaded_models import LoadedModel, check_tokenizers

_LAUNCHERS = ("DEEPSPEED", "MEGATRON_LM", "FSDP")
# The one value of each that there is a way to train with; the model is one group, see distill.training.sharding.
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


def check_data(config: RunConfig, data: PreparedData, models: list[LoadedModel]) -> None:
    """Whether the data is enough for what is asked of it, and its tokenizer the models' own.

    Args:
        models: those that are loaded, see ``check_models``.

    Raises:
        UserError: it is not.
    """
    raw, _ = example_lengths(data, config.data)
    data.layout(config.data)  # which raises where there are too few documents
    check_tokenizers(config, data, models)
    students = config.students
    kept = max((one.distill.labels.words for one in students if one.distill.reads_cached_labels), default=0)
    known = min([data.vocab_size, *(one.header.shape["vocab_size"] for one in models)])
    if kept > known:
        raise UserError(f"distill.labels.words is {kept}, but the vocabulary has only {known} words; ask for fewer")
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
