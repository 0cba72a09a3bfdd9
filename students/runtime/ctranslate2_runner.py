"""Run a ``ctranslate2`` export with ctranslate2 and tokenizers."""

import json
import time
from pathlib import Path

import ctranslate2
from tokenizers import Tokenizer

from distill.errors import UserError
from students.runtime import GREEDY, Decoding, OnToken
from students.runtime.batches import Answers


class CTranslate2Runner:
    """See ``students.runtime.Runner``. CTranslate2 reads and writes tokens, which correspond one to one to ids."""

    format = "ctranslate2"

    def __init__(self, directory: Path, threads: int | None = None):
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._model = ctranslate2.Translator(str(directory), device="cpu", intra_threads=threads or 0)
        self.compute_type = self._model.compute_type
        self._tokens = json.loads((directory / "shared_vocabulary.json").read_text(encoding="utf-8"))
        self._ids = {token: id_ for id_, token in enumerate(self._tokens)}
        self._eos = json.loads((directory / "config.json").read_text(encoding="utf-8"))["eos_token"]

    def generate(
        self,
        inputs: list[list[int]],
        max_tokens: list[int],
        decoding: Decoding = GREEDY,
        on_token: OnToken | None = None,
    ) -> list[list[int]]:
        if decoding.temperature and decoding.seed is not None:
            raise UserError("ctranslate2 cannot repeat a sample; leave out the seed, or serve another format")
        temperature = decoding.temperature
        sampling = {"sampling_topk": 0 if temperature else 1, "sampling_temperature": temperature or 1}
        answers = Answers(max_tokens, self._ids[self._eos], on_token)
        # True ends an answer. A call takes about 15 µs, so there is no callback without on_token.
        callback = (lambda step: not answers.add(step.batch_id, step.token_id)) if on_token else None
        # The defaults forbid an empty answer, and truncate an input to 1024 tokens without an error.
        options = {
            "beam_size": 1,
            "min_decoding_length": decoding.min_tokens,
            "max_decoding_length": max(max_tokens),
            "max_input_length": 0,
            "return_end_token": True,
        }
        tokens = [[self._tokens[id_] for id_ in row] for row in inputs]
        try:
            results = self._model.translate_batch(tokens, callback=callback, **options, **sampling)
        finally:
            while callback and self._model.num_active_batches:
                time.sleep(1e-4)  # a thread still holds the callback; if Python exited now, the process would abort
        if callback is None:
            for row, result in enumerate(results):
                for token in result.hypotheses[0]:
                    answers.add(row, self._ids[token])
        if not all(answers.rows):  # every real answer has at least </s>
            raise UserError("ctranslate2 gives no answer to an empty text; leave it out, or serve another format")
        return answers.rows

    def score(self, inputs: list[list[int]], targets: list[list[int]]) -> list[list[float]]:
        eos = self._ids[self._eos]
        # CTranslate2 appends </s> to every target.
        plain = [target[:-1] if target[-1] == eos else target for target in targets]
        results = self._model.score_batch(
            [[self._tokens[id_] for id_ in row] for row in inputs],
            [[self._tokens[id_] for id_ in row] for row in plain],
            max_input_length=0,
        )
        return [list(result.log_probs)[: len(target)] for result, target in zip(results, targets, strict=True)]
