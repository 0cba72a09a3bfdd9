"""Export to ``hf``: a directory for transformers, TensorRT-LLM and the tools that build on them."""

from pathlib import Path

from transformers import T5ForConditionalGeneration

from distill.models.save import save_t5
from students.export.student import write_shared_files


def write(student: T5ForConditionalGeneration, source: Path, directory: Path, precision: str) -> None:
    """Write config.json, generation_config.json, model.safetensors and the tokenizer."""
    save_t5(student, directory)
    write_shared_files(student, source, directory, config=False)  # save_t5 wrote both configs
