"""A Switch teacher behind the same interface as an exported student."""

from pathlib import Path

import torch
from tokenizers import Tokenizer

from students.runtime.batches import special_ids
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
        self._ids = special_ids(directory)
