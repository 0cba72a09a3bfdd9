"""A Switch teacher behind the same interface as an exported student."""

from pathlib import Path

import torch
from tokenizers import Tokenizer

from students.runtime.batches import SpecialIds
from students.runtime.hf_runner import HfRunner
from teachers.model import load_teacher


class TeacherRunner(HfRunner):
    """``generate`` of plain transformers on a teacher of ``load_teacher``, in float32."""

    def __init__(self, directory: Path, threads: int | None = None):
        """``directory`` is one that ``save_teacher`` or transformers wrote, with a tokenizer.json.

        Raises:
            UserError: there is no teacher in it.
        """
        if threads:
            torch.set_num_threads(threads)
        self.model = load_teacher(directory)
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        config = self.model.config  # which has a start even where config.json names none
        self._ids = SpecialIds(config.decoder_start_token_id, config.pad_token_id, config.eos_token_id)
