"""Plain transformers: what every other runtime is compared with."""

import contextlib
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import StoppingCriteria, T5ForConditionalGeneration

from students.check import check_dense
from students.runtime import GREEDY, Decoding, OnToken
from students.runtime.batches import Answers, pad, special_ids


class HfRunner:
    """A directory that ``save_pretrained`` wrote, in float32 on the CPU. See ``students.runtime.Runner``."""

    format = "hf"
    compute_type = "float32"

    def __init__(self, directory: Path, threads: int | None = None):
        """``directory`` also holds a tokenizer.json.

        Raises:
            UserError: there is no dense T5 in it.
        """
        if threads:
            torch.set_num_threads(threads)
        check_dense(str(directory), f"the student in {directory}")
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self.model = T5ForConditionalGeneration.from_pretrained(
            directory, dtype=torch.float32, local_files_only=True, use_safetensors=True
        ).eval()
        self._ids = special_ids(directory)

    @torch.inference_mode()
    def generate(
        self,
        inputs: list[list[int]],
        max_tokens: list[int],
        how: Decoding = GREEDY,
        on_token: OnToken | None = None,
    ) -> list[list[int]]:
        sampling = {"do_sample": False}
        if how.temperature:
            sampling = {"do_sample": True, "temperature": how.temperature, "top_k": 0, "top_p": 1.0}
        ids, mask = (torch.from_numpy(array) for array in pad(inputs, self._ids.pad))
        answers = Answers(max_tokens, self._ids.eos, on_token)
        with torch.random.fork_rng() if how.seed is not None else contextlib.nullcontext():
            if how.seed is not None:
                torch.manual_seed(how.seed)
            self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max(max_tokens),
                min_new_tokens=how.min_tokens,
                num_beams=1,
                stopping_criteria=[_Ends(answers)],
                **sampling,
            )
        return answers.rows

    @torch.inference_mode()
    def score(self, inputs: list[list[int]], targets: list[list[int]]) -> list[list[float]]:
        ids, mask = (torch.from_numpy(array) for array in pad(inputs, self._ids.pad))
        words = torch.from_numpy(pad(targets, self._ids.pad)[0])
        start = torch.full((len(targets), 1), self._ids.start)
        logits = self.model(
            input_ids=ids, attention_mask=mask, decoder_input_ids=torch.cat([start, words[:, :-1]], dim=1)
        ).logits
        scores = logits.log_softmax(-1).gather(-1, words[..., None]).squeeze(-1).tolist()
        return [row[: len(target)] for row, target in zip(scores, targets, strict=True)]


class _Ends(StoppingCriteria):
    """What ``generate`` asks after each step, of ids [B, T]: which rows have ended."""

    def __init__(self, answers: Answers):
        self._answers = answers

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        self._answers.add_step(input_ids[:, -1].tolist())
        return torch.from_numpy(~self._answers.open)
