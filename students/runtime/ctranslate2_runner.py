"""ctranslate2 and tokenizers alone."""

import json
import time
from pathlib import Path

import ctranslate2
from tokenizers import Tokenizer

from distill.errors import UserError
from students.runtime import GREEDY, Decoding, OnToken
from students.runtime.batches import Answers


class CTranslate2Runner:
    """CTranslate2 reads and writes words, not ids; the vocabulary is one to one. See ``students.runtime.Runner``."""

    format = "ctranslate2"

    def __init__(self, directory: Path, threads: int | None = None):
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._model = ctranslate2.Translator(str(directory), device="cpu", intra_threads=threads or 0)
        self.compute_type = self._model.compute_type
        self._words = json.loads((directory / "shared_vocabulary.json").read_text(encoding="utf-8"))
        self._ids = {word: id_ for id_, word in enumerate(self._words)}
        self._eos = json.loads((directory / "config.json").read_text(encoding="utf-8"))["eos_token"]

    def generate(
        self,
        inputs: list[list[int]],
        max_tokens: list[int],
        how: Decoding = GREEDY,
        on_token: OnToken | None = None,
    ) -> list[list[int]]:
        if how.temperature and how.seed is not None:
            raise UserError("ctranslate2 cannot repeat a sample; leave out the seed, or serve another format")
        sampling = {"sampling_topk": 0 if how.temperature else 1, "sampling_temperature": how.temperature or 1}
        answers = Answers(max_tokens, self._ids[self._eos], on_token)
        # Where it returns True, that one answer ends. A call takes about 15 µs, so there is none if nobody listens.
        callback = (lambda step: not answers.add(step.batch_id, step.token_id)) if on_token else None
        # The defaults forbid an empty answer and cut an input at 1024 words without saying so.
        options = {
            "beam_size": 1,
            "min_decoding_length": how.min_tokens,
            "max_decoding_length": max(max_tokens),
            "max_input_length": 0,
            "return_end_token": True,
        }
        words = [[self._words[id_] for id_ in row] for row in inputs]
        try:
            results = self._model.translate_batch(words, callback=callback, **options, **sampling)
        finally:
            while callback and self._model.num_active_batches:
                time.sleep(1e-4)  # its thread still holds the callback: an exit of Python now would abort there
        if callback is None:
            for row, result in enumerate(results):
                for word in result.hypotheses[0]:
                    answers.add(row, self._ids[word])
        if not all(answers.rows):  # a real answer has its </s> at least
            raise UserError("ctranslate2 gives no answer to an empty text; leave it out, or serve another format")
        return answers.rows

    def score(self, inputs: list[list[int]], targets: list[list[int]]) -> list[list[float]]:
        eos = self._ids[self._eos]
        # It puts </s> at the end of every target by itself.
        plain = [target[:-1] if target[-1] == eos else target for target in targets]
        results = self._model.score_batch(
            [[self._words[id_] for id_ in row] for row in inputs],
            [[self._words[id_] for id_ in row] for row in plain],
            max_input_length=0,
        )
        return [list(result.log_probs)[: len(target)] for result, target in zip(results, targets, strict=True)]
