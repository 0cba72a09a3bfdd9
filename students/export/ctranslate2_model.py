"""Export to ``ctranslate2``: the weights in CTranslate2's binary format."""

from pathlib import Path

import torch
from ctranslate2.converters.converter import Converter
from ctranslate2.converters.transformers import T5Loader
from ctranslate2.specs.model_spec import ModelSpec
from transformers import AutoTokenizer, PreTrainedTokenizerBase, T5ForConditionalGeneration

from students.export.student import write_shared_files


class _Loader(T5Loader):
    """T5Loader scales the outputs if ``tie_word_embeddings`` is set; ``load_student`` sets it correctly."""

    def get_vocabulary(self, model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """A distinct name for each id. T5Loader would give unused ids the names of sentinels, which exist already."""
        tokens = {id_: token for token, id_ in tokenizer.get_vocab().items()}
        return [tokens.get(id_, f"<unused_{id_}>") for id_ in range(model.config.vocab_size)]


class _Converter(Converter):
    def __init__(self, student: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerBase):
        self._student, self._tokenizer = student, tokenizer

    @torch.no_grad()
    def _load(self) -> ModelSpec:
        return _Loader()(self._student, self._tokenizer)


def write(student: T5ForConditionalGeneration, source: Path, directory: Path, precision: str) -> None:
    """Write CTranslate2's model.bin, config.json and shared_vocabulary.json, the tokenizer, and the answer length."""
    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    quantization = None if precision == "float32" else precision
    _Converter(student, tokenizer).convert(str(directory), quantization=quantization, force=True)
    write_shared_files(student, source, directory, config=False)  # config.json is CTranslate2's own
    student.generation_config.save_pretrained(directory)
