"""Read the student to export, and write the files of all formats: tokenizer, config, generation config."""

import shutil
from pathlib import Path

from transformers import T5ForConditionalGeneration

from distill.errors import UserError
from distill.models.save import correct_tokenizer_config, set_tie_word_embeddings
from students.load import load_dense

# The targets of an input of 512 tokens have 114 tokens; the default of transformers is 20.
MAX_NEW_TOKENS = 128
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "spiece.model")  # spiece.model is optional, for llama.cpp


def load_student(directory: Path) -> T5ForConditionalGeneration:
    """Load a dense T5 in float32 and eval mode, and set ``max_new_tokens`` of its generation config.

    Raises:
        UserError: the directory holds no dense T5 with weights in safetensors and a tokenizer.json.
    """
    if not (directory / "tokenizer.json").is_file():
        raise UserError(f"{directory} has no tokenizer.json; save the tokenizer there with save_pretrained")
    student = load_dense(str(directory), f"the student in {directory}")
    set_tie_word_embeddings(student.config)
    student.generation_config.max_new_tokens = MAX_NEW_TOKENS
    return student


def write_shared_files(student: T5ForConditionalGeneration, source: Path, directory: Path, *, config: bool) -> None:
    """Copy the tokenizer from ``source``, and with ``config`` write config.json and generation_config.json.

    Args:
        config: whether to write the configs of transformers; False for a format with a config.json of its own.

    Raises:
        UserError: tokenizer_config.json is damaged.
    """
    for name in _TOKENIZER:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)
    if (directory / "tokenizer_config.json").is_file():
        correct_tokenizer_config(directory / "tokenizer_config.json")
    if config:
        student.config.save_pretrained(directory)
        student.generation_config.save_pretrained(directory)
