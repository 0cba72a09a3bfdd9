"""Run an exported student, one module per format. Needs numpy, tokenizers and the format's own library, no torch.

A server's process imports this package alone, so that it starts in a second and stays small; ``hf`` and ``mlflow``
exports bring torch with them when they are loaded.
"""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from tokenizers import Tokenizer

from distill.errors import ExpectedError, UserError
from distill.io.files import read_json

# What to import for each format, and the library that it needs.
_RUNNERS = {
    "hf": ("students.runtime.hf_runner", "HfRunner", "torch"),
    "onnx": ("students.runtime.onnx_runner", "OnnxRunner", "onnxruntime"),
    "ctranslate2": ("students.runtime.ctranslate2_runner", "CTranslate2Runner", "ctranslate2"),
    "mlflow": ("students.runtime.mlflow_runner", "MlflowRunner", "mlflow"),
}


class Decoding(NamedTuple):
    """How the words of answers are chosen."""

    min_tokens: int = 0  # before which no answer ends
    temperature: float = 0.0  # 0 takes the likeliest token, any other samples from the whole vocabulary
    seed: int | None = None  # of the sampling; the same call with the same seed gives the same answers


GREEDY = Decoding()

# Told the row of an answer and its next id, while a batch is computed; the answer ends there if it returns True.
OnToken = Callable[[int, int], bool]


class Runner(Protocol):
    """A loaded student: ids in, ids or log-probabilities out. A call is one batch."""

    format: str
    compute_type: str  # what the runtime really computes in, which may differ from what was asked for
    tokenizer: Tokenizer

    def generate(
        self,
        inputs: list[list[int]],
        max_tokens: list[int],
        how: Decoding = GREEDY,
        on_token: OnToken | None = None,
    ) -> list[list[int]]:
        """Answers, token by token.

        Args:
            inputs: ids of each input, of any lengths of at least 1, ``</s>`` included.
            max_tokens: the most tokens of each answer, ``</s>`` included, at least 1.
            how: their words are chosen.
            on_token: told each token of each answer as it is made, in the order of each answer. What it says of one
                answer changes no other.

        Returns:
            Ids of each answer, without the decoder's start token, ending in ``</s>`` if the model ended it; they are
            those that ``on_token`` was told.

        Raises:
            UserError: the runtime cannot do what was asked for.
        """
        ...

    def score(self, inputs: list[list[int]], targets: list[list[int]]) -> list[list[float]]:
        """Log-probabilities in nats of each token of each target, given its input and the target's tokens before it."""
        ...


def load_runner(directory: str | Path, *, threads: int | None = None) -> Runner:
    """Load an export by the runtime of its own format.

    Args:
        directory: what ``switch-distill export`` wrote.
        threads: for one call; the runtime's default if None.

    Raises:
        UserError: it is not an export, is damaged, or the library of its format is not installed.
    """
    directory = Path(directory)
    format = read_manifest(directory)["format"]
    if format not in _RUNNERS:
        raise UserError(f"{directory} is a {format!r} export, which is not known here; export the model again")
    module, name, library = _RUNNERS[format]
    if importlib.util.find_spec(library) is None:
        raise UserError(f'a {format} export needs {library}; install it with: pip install "switch-distill[{format}]"')
    runner = getattr(importlib.import_module(module), name)
    try:
        return runner(directory, threads)
    except (ExpectedError, MemoryError, ImportError):
        raise
    except Exception as error:  # each library raises kinds of its own where a file is missing, damaged or another's
        cause = " ".join(str(error).split())[:200]
        raise UserError(f"the {format} export {directory} cannot be loaded: {cause}; export the model again") from error


def read_manifest(directory: str | Path) -> dict:
    """``manifest.json`` of an export: format, precision, runtime and the digests of its files.

    Raises:
        UserError: the directory has none, or it is not what an export writes.
    """
    path = Path(directory) / "manifest.json"
    if not path.is_file():
        raise UserError(
            f"{directory} is not an export (it has no manifest.json); make one with: switch-distill export MODEL"
        )
    cure = "copy it again, or export the model again"
    manifest = read_json(path, cure)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("format"), str):
        raise UserError(f"{path} is not what an export writes; {cure}")
    return manifest


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text with ``</s>``; sentinels that are written out, ``<extra_id_0>``, are sentinels."""
    return tokenizer.encode(text).ids


def decode(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Text of an answer. Sentinels stay, because they say which mask a span belongs to; ``<pad>`` and ``</s>`` go."""
    silent = silent_ids(tokenizer)
    return tokenizer.decode([id_ for id_ in ids if id_ not in silent], skip_special_tokens=False)


def silent_ids(tokenizer: Tokenizer) -> set[int | None]:
    """The ids that ``decode`` leaves out; None stands for one that the tokenizer does not have."""
    return {tokenizer.token_to_id("<pad>"), tokenizer.token_to_id("</s>")}
