"""Run an ``onnx`` export with onnxruntime, numpy and tokenizers. B rows, V vocabulary size."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime import OrtValue
from tokenizers import Tokenizer

from students.runtime import GREEDY, Decoding, OnToken
from students.runtime.batches import Answers, log_softmax, pad, special_ids


class OnnxRunner:
    """See ``students.runtime.Runner``. Runs the encoder once per batch and the decoder once per token."""

    format = "onnx"

    def __init__(self, directory: Path, threads: int | None = None):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads:
            options.intra_op_num_threads = threads
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._encoder, self._decoder = (
            onnxruntime.InferenceSession(directory / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
            for name in ("encoder", "decoder")
        )
        self._ids = special_ids(directory)
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        self._cache_shape = (config["num_heads"], 0, config["d_kv"])
        self._cross = [output.name for output in self._encoder.get_outputs()]
        self._present = [output.name for output in self._decoder.get_outputs()][1:]
        self._past = [name.replace("present", "past") for name in self._present]
        self.compute_type = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))["precision"]

    def generate(
        self,
        inputs: list[list[int]],
        max_tokens: list[int],
        decoding: Decoding = GREEDY,
        on_token: OnToken | None = None,
    ) -> list[list[int]]:
        generator, answers = np.random.default_rng(decoding.seed), Answers(max_tokens, self._ids.eos, on_token)
        token_ids, decoder, steps = np.full(len(inputs), self._ids.start), _Decoder(self, inputs), 0
        while answers.unfinished.any():
            logits = decoder.step(token_ids)
            if steps < decoding.min_tokens:
                logits[:, self._ids.eos] = -np.inf
            token_ids, steps = _choose(logits, decoding.temperature, generator), steps + 1
            token_ids[~answers.unfinished] = self._ids.pad
            answers.add_step(token_ids.tolist())
        return answers.rows

    def score(self, inputs: list[list[int]], targets: list[list[int]]) -> list[list[float]]:
        target_ids, _ = pad(targets, self._ids.pad)
        before = np.concatenate([np.full((len(target_ids), 1), self._ids.start), target_ids[:, :-1]], axis=1)
        decoder = _Decoder(self, inputs)
        scores: np.ndarray = np.empty(target_ids.shape)
        for position in range(target_ids.shape[1]):
            log_probabilities = log_softmax(decoder.step(before[:, position]))
            scores[:, position] = np.take_along_axis(log_probabilities, target_ids[:, position, None], axis=1)[:, 0]
        return [row[: len(target)] for row, target in zip(scores.tolist(), targets, strict=True)]


class _Decoder:
    """The decoder of one batch. The cross and past keys and values stay in onnxruntime's memory."""

    def __init__(self, runner: OnnxRunner, inputs: list[list[int]]):
        self._runner = runner
        ids, mask = pad(inputs, runner._ids.pad)
        values = {"input_ids": OrtValue.ortvalue_from_numpy(ids), "attention_mask": OrtValue.ortvalue_from_numpy(mask)}
        cross = runner._encoder.run_with_ort_values(runner._cross, values)
        nothing = OrtValue.ortvalue_from_numpy(np.zeros((len(inputs), *runner._cache_shape), dtype=np.float32))
        self._feed = dict(zip(runner._cross, cross, strict=True))
        self._feed |= {name: nothing for name in runner._past}
        self._feed["encoder_attention_mask"] = values["attention_mask"]

    def step(self, token_ids: np.ndarray) -> np.ndarray:
        """Feed the next token id [B] of each row -> logits [B, V] of the token after it."""
        self._feed["input_ids"] = OrtValue.ortvalue_from_numpy(token_ids.astype(np.int64)[:, None])
        logits, *present = self._runner._decoder.run_with_ort_values(["logits", *self._runner._present], self._feed)
        self._feed.update(zip(self._runner._past, present, strict=True))
        return logits.numpy()


def _choose(logits: np.ndarray, temperature: float, generator: np.random.Generator) -> np.ndarray:
    """The likeliest token id [B] at temperature 0, otherwise a sample by the Gumbel-max trick."""
    if not temperature:
        return logits.argmax(-1)
    return (logits / temperature + generator.gumbel(size=logits.shape)).argmax(-1)
