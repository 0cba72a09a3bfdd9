"""Run an ``mlflow`` export with MLflow, for the parity check. ``switch-distill serve`` does not serve this format."""

from pathlib import Path

import mlflow
import pandas as pd

from distill.io.files import directory_uri
from students.runtime import GREEDY, Decoding, OnToken, decode, encode
from students.runtime.hf_runner import HfRunner


class MlflowRunner(HfRunner):
    """See ``students.runtime.Runner``. ``generate`` also checks that the pyfunc model predicts the text of its T5."""

    format = "mlflow"

    def __init__(self, directory: Path, threads: int | None = None):
        super().__init__(directory / "artifacts" / "student", threads)
        self._loaded = mlflow.pyfunc.load_model(directory_uri(directory))
        self.model = self._loaded.unwrap_python_model().model

    def generate(
        self,
        inputs: list[list[int]],
        max_tokens: list[int],
        decoding: Decoding = GREEDY,
        on_token: OnToken | None = None,
    ) -> list[list[int]]:
        longest = max(max_tokens)
        if decoding == GREEDY:  # predict is always greedy
            texts = [decode(self.tokenizer, row) for row in inputs]
            predicted = self._loaded.predict(pd.DataFrame({"text": texts}), params={"max_tokens": longest})
            # Truncated inputs and unknown tokens may not be restored by decoding, so the T5 gets the same texts.
            full = super().generate([encode(self.tokenizer, text) for text in texts], [longest] * len(texts))
            if predicted != (expected := [decode(self.tokenizer, row) for row in full]):
                wrong = next(n for n, text in enumerate(expected) if predicted[n] != text)
                raise RuntimeError(f"predict answered {predicted[wrong]!r}, its T5 {expected[wrong]!r}")
        return super().generate(inputs, max_tokens, decoding, on_token)
