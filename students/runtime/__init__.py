"""Run an exported student, one module per format. Needs numpy, tokenizers and the library of the format, no torch.

A server imports only this package, so that it starts in a second and needs little memory. Loading an ``hf`` or
``mlflow`` export imports torch.

hf_runner           format hf, with transformers: the reference for every other runtime
onnx_runner         format onnx, with onnxruntime
ctranslate2_runner  format ctranslate2
mlflow_runner       format mlflow, for the parity check
pyfunc_model        the code of an mlflow export, which MLflow copies into it
batches             padding of token ids, and the answers of a batch
"""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tokenizers import Tokenizer

from distill.errors import ExpectedError, UserError
from distill.io.files import read_json

# Format -> module, class, and the library that it needs.
_RUNNERS = {
    "hf": ("students.runtime.hf_runner", "HfRunner", "torch"),
    "onnx": ("students.runtime.onnx_runner", "OnnxRunner", "onnxruntime"),
    "ctranslate2": ("students.runtime.ctranslate2_runner", "CTranslate2Runner", "ctranslate2"),
    "mlflow": ("students.runtime.mlflow_runner", "MlflowRunner", "mlflow"),
}


class Decoding(NamedTuple):
    """How the tokens of answers are chosen."""

    min_tokens: int = 0  # the length before which no answer ends
    temperature: float = 0.0  # 0 is greedy decoding; otherwise tokens are sampled from the whole vocabulary
    seed: int | None = None  # of the sampling; the same call with the same seed gives the same answers


GREEDY = Decoding()

# Called with the row of an answer and its next token id while a batch is computed. True ends the answer.
OnToken = Callable[[int, int], bool]


class Runner(Protocol):
    """A loaded student that maps token ids to token ids or log-probabilities. A call is one batch."""

    format: str
    compute_type: str  # the type that the runtime computes in, which may differ from the precision of the export
    tokenizer: Tokenizer

    def generate(
        self,
        inputs: list[list[int]],
        max_tokens: list[int],
        decoding: Decoding = GREEDY,
        on_token: OnToken | None = None,
    ) -> list[list[int]]:
        """Generate an answer to each input.

        Args:
            inputs: token ids of each input, ``</s>`` included; lengths of at least 1, which may differ.
            max_tokens: the largest number of tokens of each answer, ``</s>`` included, at least 1.
            decoding: how tokens are chosen.
            on_token: called with each token of each answer as it is generated, in the order of each answer. Its result
                for one answer changes no other answer.

        Returns:
            Token ids of each answer, without the decoder's start token, and with ``</s>`` at the end if the model ended
            the answer. ``on_token`` has been called with exactly these.

        Raises:
            UserError: the runtime does not support the decoding or an input.
        """
        ...

    def score(self, inputs: list[list[int]], targets: list[list[int]]) -> list[list[float]]:
        """Score targets by teacher forcing.

        Args:
            inputs: token ids of each input, as in ``generate``.
            targets: token ids of the target of each input, of at least 1 token.

        Returns:
            The log-probability in nats of each token of each target, given the input and the earlier tokens.
        """
        ...


def load_runner(directory: str | Path, *, threads: int | None = None) -> Runner:
    """Load an export with the runtime of its format.

    Args:
        directory: a directory that ``switch-distill export`` wrote.
        threads: number of threads of a call; None for the runtime's default.

    Raises:
        UserError: ``directory`` is not an export or is damaged, or the library of its format is not installed.
    """
    directory = Path(directory)
    format = read_manifest(directory)["format"]
    if format not in _RUNNERS:
        raise UserError(f"{directory} is an export of the unknown format {format!r}; export the model again")
    module, name, library = _RUNNERS[format]
    if importlib.util.find_spec(library) is None:
        raise UserError(f'a {format} export needs {library}; install it with: pip install "switch-distill[{format}]"')
    runner = getattr(importlib.import_module(module), name)
    try:
        return runner(directory, threads)
    except (ExpectedError, MemoryError, ImportError):
        raise
    except Exception as error:  # each library has its own errors for missing, damaged or wrong files
        cause = " ".join(str(error).split())[:200]
        raise UserError(f"the {format} export {directory} cannot be loaded: {cause}; export the model again") from error


def read_manifest(directory: str | Path) -> dict[str, Any]:
    """Read ``manifest.json`` of an export: format, precision, versions and the digests of its files.

    Raises:
        UserError: the directory has no manifest.json, or the file is damaged or of another kind.
    """
    path = Path(directory) / "manifest.json"
    if not path.is_file():
        raise UserError(
            f"{directory} is not an export (it has no manifest.json); make one with: switch-distill export MODEL"
        )
    hint = "copy it again, or export the model again"
    manifest = read_json(path, hint)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("format"), str):
        raise UserError(f"{path} is not the manifest of an export; {hint}")
    return manifest


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text, with ``</s>`` at the end. ``<extra_id_0>`` in the text becomes the sentinel."""
    return tokenizer.encode(text).ids


def decode(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Text of an answer, without ``<pad>`` and ``</s>``. Sentinels stay: each names the mask that its span fills."""
    omitted = omitted_ids(tokenizer)
    return tokenizer.decode([id_ for id_ in ids if id_ not in omitted], skip_special_tokens=False)


def omitted_ids(tokenizer: Tokenizer) -> set[int | None]:
    """The ids that ``decode`` omits, with None for a token that the tokenizer does not have."""
    return {tokenizer.token_to_id("<pad>"), tokenizer.token_to_id("</s>")}
