"""Checks of a run before anything is written: the launcher, the amount of data, and the memory of this machine.

Imports no torch, so that errors appear at once.
"""

import os

from distill.data.prepared_data import PreparedData
from distill.errors import UserError
from distill.model_size import num_parameters
from distill.processes import num_processes
from pipelines.config.run_config import RunConfig
from pipelines.workdir.loaded_models import LoadedModel, check_tokenizers

_LAUNCHERS = ("DEEPSPEED", "MEGATRON_LM", "FSDP")
# The only supported value of each option. The groups are those of distill.training.sharding.
_FSDP = {
    "FSDP_VERSION": "2",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
    "FSDP_AUTO_WRAP_POLICY": "no_wrap",
}


def check_launch() -> int:
    """The number of processes of this run.

    Raises:
        UserError: an option of ``accelerate launch`` is not supported by the training loop.
    """
    used = {name: os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true" for name in _LAUNCHERS}
    refused = [f"--use_{name.lower()}" for name in _LAUNCHERS if used[name] and name != "FSDP"]
    if used["FSDP"]:
        options = {name: os.environ.get(name, only) for name, only in _FSDP.items()}
        refused += [f"--{name.lower()} {value}" for name, value in options.items() if value.lower() != _FSDP[name]]
    if refused:
        raise UserError(
            f"accelerate launch {refused[0]} is not supported; use --multi_gpu, or --use_fsdp --fsdp_version 2 with "
            "the defaults of the other FSDP options"
        )
    return num_processes()


def check_data(config: RunConfig, data: PreparedData, models: list[LoadedModel]) -> None:
    """Check that there is enough data for the config, and that its tokenizer fits the loaded models.

    Args:
        models: the loaded models, from ``check_models``.

    Raises:
        UserError: there is too little data, or tokenizer and models differ.
    """
    data.check_examples(config.data)
    check_tokenizers(config, data, models)
    students = config.students
    kept = max((one.distill.labels.num_tokens for one in students if one.distill.reads_cached_labels), default=0)
    known = min([data.vocab_size, *(one.header.vocab_size for one in models)])
    if kept > known:
        raise UserError(f"distill.labels.num_tokens is {kept}, but the vocabulary has only {known} tokens; lower it")
    examples = data.num_training_examples(config.data)
    wanted = max((one.student.calibration_examples for one in students if one.student.is_calibrated), default=0)
    if wanted + min(-(-wanted // 4), examples) > examples:
        raise UserError(
            f"student.calibration_examples is {wanted}, but there are {examples} training examples, and the FFN error "
            f"is measured on a quarter as many more; set it to at most {examples * 4 // 5}"
        )


def check_size(config: RunConfig, processes: int) -> None:
    """Check that the machine's memory can hold the weights of the models and the hidden states of one pass.

    This is a lower bound: a config that passes may still need too much memory.

    Raises:
        UserError: a batch cannot be divided among the processes, or the memory is too small.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    length = config.task.max_input if config.task else config.data.input_length
    for training in (config.teacher.training, *(student.distill.training for student in config.students)):
        examples = training.examples_per_pass(processes)
        states = 4 * examples * length * config.model.d_model * config.model.num_layers
        if states > memory and not config.teacher.checkpoints:
            raise UserError(
                f"a pass of {examples} examples of {length} input tokens takes more than "
                f"{states / 1e9:,.0f} GB, but this machine has {memory / 1e9:,.0f} GB; lower training.micro_batch_size"
            )
    size = num_parameters(config.model, config.data.vocabulary, max(config.teacher.experts, default=1))
    if (needed := 4 * size) > memory and config.teacher.experts:
        raise UserError(
            f"a teacher of this model with {max(config.teacher.experts)} experts takes {needed / 1e9:,.0f} GB, but "
            f"this machine has {memory / 1e9:,.0f} GB; choose a smaller model or fewer teacher.experts"
        )
