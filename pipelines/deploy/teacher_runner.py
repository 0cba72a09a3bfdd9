"""A Switch teacher with the same interface as an exported student."""

from pathlib import Path

import torch
from tokenizers import Tokenizer

from students.runtime.batches import SpecialIds
from students.runtime.hf_runner import HfRunner
from teachers.load import load_teacher
from teachers.switch_layer import SwitchLayer


class TeacherRunner(HfRunner):
    """Runs ``generate`` of transformers on a teacher from ``load_teacher``, in float32.

    Its Switch layers drop no tokens, as in ``distill.generation``. So an answer depends on its prompt alone, up to
    rounding, whatever the other prompts of its batch.
    """

    def __init__(self, directory: Path, threads: int | None = None):
        """Load the teacher.

        Args:
            directory: a directory that ``save_teacher`` or transformers wrote, with a tokenizer.json.
            threads: threads of torch; None: its default.

        Raises:
            UserError: there is no teacher in the directory.
        """
        if threads:
            torch.set_num_threads(threads)
        self.model = load_teacher(directory, compute_dtype=torch.float32)
        for layer in self.model.modules():
            if isinstance(layer, SwitchLayer):
                layer.drops_tokens = False
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        config = self.model.config  # has a start token even if config.json has none
        self._ids = SpecialIds(config.decoder_start_token_id, config.pad_token_id, config.eos_token_id)
