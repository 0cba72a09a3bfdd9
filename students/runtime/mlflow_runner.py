"""An ``mlflow`` export, loaded by MLflow. For the gate: a server of one's own gains nothing from MLflow's layers."""

from pathlib import Path

import mlflow
import pandas as pd

from distill.io.files import directory_uri
from students.runtime import GREEDY, Decoding, OnToken, decode
from students.runtime.hf_runner import HfRunner


class MlflowRunner(HfRunner):
    """What the pyfunc model predicts must be the text of what its T5 generates. See ``students.runtime.Runner``."""

    format = "mlflow"

    def __init__(self, directory: Path, threads: int | None = None):
        super().__init__(directory / "artifacts" / "student", threads)
        self._loaded = mlflow.pyfunc.load_model(directory_uri(directory))
        self.model = self._loaded.unwrap_python_model().model

    def generate(
        self,
        inputs: list[list[int]],
        max_tokens: list[int],
        how: Decoding = GREEDY,
        on_token: OnToken | None = None,
    ) -> list[list[int]]:
        longest = max(max_tokens)
        if how == GREEDY:  # predict knows no other
            frame = pd.DataFrame({"text": [decode(self.tokenizer, row) for row in inputs]})
            predicted = self._loaded.predict(frame, params={"max_tokens": longest})
            full = super().generate(inputs, [longest] * len(inputs))
            if predicted != (expected := [decode(self.tokenizer, row) for row in full]):
                wrong = next(n for n, text in enumerate(expected) if predicted[n] != text)
                raise RuntimeError(f"predict answered {predicted[wrong]!r}, its T5 {expected[wrong]!r}")
        return super().generate(inputs, max_tokens, how, on_token)
