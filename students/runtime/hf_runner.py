"""Run an ``hf`` export with transformers: the reference for every other runtime."""

import contextlib
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import StoppingCriteria

from students.load import load_dense
from students.runtime import GREEDY, Decoding, OnToken
from students.runtime.batches import Answers, pad, special_ids


class HfRunner:
    """See ``students.runtime.Runner``. Runs a directory of ``save_pretrained`` in float32 on the CPU."""

    format = "hf"
    compute_type = "float32"

    def __init__(self, directory: Path, threads: int | None = None):
        """Load the model and ``tokenizer.json`` from ``directory``.

        Raises:
            UserError: ``directory`` holds no dense T5.
        """
        if threads:
            torch.set_num_threads(threads)
        # Any: by its annotation, ``generate`` of transformers does not accept transformers' own models.
        self.model: Any = load_dense(str(directory), f"the student in {directory}")
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._ids = special_ids(directory)

    @torch.inference_mode()
    def generate(
        self,
        inputs: list[list[int]],
        max_tokens: list[int],
        decoding: Decoding = GREEDY,
        on_token: OnToken | None = None,
    ) -> list[list[int]]:
        sampling: dict[str, Any] = {"do_sample": False}
        if decoding.temperature:
            sampling = {"do_sample": True, "temperature": decoding.temperature, "top_k": 0, "top_p": 1.0}
        ids, mask = (torch.from_numpy(array) for array in pad(inputs, self._ids.pad))
        answers = Answers(max_tokens, self._ids.eos, on_token)
        with torch.random.fork_rng() if decoding.seed is not None else contextlib.nullcontext():
            if decoding.seed is not None:
                torch.manual_seed(decoding.seed)
            self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max(max_tokens),
                min_new_tokens=decoding.min_tokens,
                num_beams=1,
                stopping_criteria=[_AnswersEnded(answers)],
                **sampling,
            )
        return answers.rows

    @torch.inference_mode()
    def score(self, inputs: list[list[int]], targets: list[list[int]]) -> list[list[float]]:
        ids, mask = (torch.from_numpy(array) for array in pad(inputs, self._ids.pad))
        target_ids = torch.from_numpy(pad(targets, self._ids.pad)[0])
        start = torch.full((len(targets), 1), self._ids.start)
        logits = self.model(
            input_ids=ids, attention_mask=mask, decoder_input_ids=torch.cat([start, target_ids[:, :-1]], dim=1)
        ).logits
        scores = logits.log_softmax(-1).gather(-1, target_ids[..., None]).squeeze(-1).tolist()
        return [row[: len(target)] for row, target in zip(scores, targets, strict=True)]


class _AnswersEnded(StoppingCriteria):
    """Add the last token of ``input_ids`` [B, T] to the answers -> [B] bool, the answers that have ended."""

    def __init__(self, answers: Answers):
        self._answers = answers

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        self._answers.add_step(input_ids[:, -1].tolist())
        return torch.from_numpy(~self._answers.unfinished)
