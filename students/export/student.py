"""Read the student that is exported, and write what every format has: tokenizer, config, generation config."""

import shutil
from pathlib import Path

import torch
from transformers import T5ForConditionalGeneration

from distill.errors import UserError
from distill.io.files import read_json
from distill.models.save import correct_tokenizer_config, say_whether_tied
from students.check import check_dense

# The targets of an input of 512 tokens are 114; transformers would stop at 20.
MAX_NEW_TOKENS = 128
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "spiece.model")  # the last where there is one, for llama.cpp


def load_student(directory: Path) -> T5ForConditionalGeneration:
    """A dense T5 in float32 and eval mode, with a length in its generation config.

    Raises:
        UserError: the directory holds no dense T5 with weights in safetensors and a tokenizer.json.
    """
    config = directory / "config.json"
    values = read_json(config, "copy or save the model again") if config.is_file() else {}
    kind = values.get("model_type") if isinstance(values, dict) else None
    if kind != "t5":
        found = f"a {kind} model" if kind else "no model"
        raise UserError(f"{directory} holds {found}, and only a dense T5 can be exported; name a student")
    for name in ("model.safetensors", "tokenizer.json"):
        if not (directory / name).is_file() and not (directory / f"{name}.index.json").is_file():
            raise UserError(f"{directory} has no {name}; save model and tokenizer there with save_pretrained")
    check_dense(str(directory), f"the student in {directory}")
    student = T5ForConditionalGeneration.from_pretrained(
        directory, dtype=torch.float32, local_files_only=True, use_safetensors=True
    ).eval()
    say_whether_tied(student.config)
    student.generation_config.max_new_tokens = MAX_NEW_TOKENS
    return student


def write_shared_files(student: T5ForConditionalGeneration, source: Path, directory: Path, *, config: bool) -> None:
    """The tokenizer that is in ``source``, and transformers' configs where the format has no config of its own.

    Raises:
        UserError: the config of the tokenizer is damaged.
    """
    for name in _TOKENIZER:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)
    if (directory / "tokenizer_config.json").is_file():
        correct_tokenizer_config(directory / "tokenizer_config.json")
    if config:
        student.config.save_pretrained(directory)
        student.generation_config.save_pretrained(directory)
