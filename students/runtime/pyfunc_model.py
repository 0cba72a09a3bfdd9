"""The code of an ``mlflow`` export. MLflow copies this file into the model; it imports nothing of this project.

The input is a column ``text``. The answers keep their sentinels, each of which names the mask that its span fills.
"""

from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

BATCH_SIZE = 16


class Student(PythonModel):
    """A pyfunc model that answers greedily with a T5, on a GPU if there is one."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the T5 and its tokenizer from the artifact ``student``."""
        import torch
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        directory = context.artifacts["student"]
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        self.model = AutoModelForSeq2SeqLM.from_pretrained(
            directory, dtype=torch.float32, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
        self.model.eval().to(self.device)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> list[str]:
        """The answer to each text in the column ``text``, of at most ``params["max_tokens"]`` tokens."""
        texts, answers = model_input["text"].tolist(), []
        for start in range(0, len(texts), BATCH_SIZE):
            batch = self.tokenizer(texts[start : start + BATCH_SIZE], padding=True, return_tensors="pt").to(self.device)
            rows = self.model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=(params or {})["max_tokens"],
                do_sample=False,
                num_beams=1,
            )
            answers += [self._text(row) for row in rows.tolist()]
        return answers

    def _text(self, ids: list[int]) -> str:
        omitted = {self.tokenizer.pad_token_id, self.tokenizer.eos_token_id}
        kept = [id_ for id_ in ids if id_ not in omitted]
        return str(self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))


set_model(Student())
