"""Training and loading of tokenizers, with the checks that T5's objective needs."""

import itertools
import json
from collections import deque
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, T5Tokenizer

from distill.errors import UserError
from distill.io.hub_files import TOKENIZER, local_files
from distill.special_tokens import SpecialTokens

SENTINELS = 100
TRAINING_CHARACTERS = 200_000_000  # enough for any vocabulary here; a bound for corpora like C4
_NAMES_ITS_CLASS = {"tokenizer.json", "tokenizer_config.json", "config.json"}
_HIDDEN = "\ufdd0"  # a noncharacter of Unicode, which text should not contain


class HasText(Protocol):
    """A document of a corpus, or a pair of a task."""

    @property
    def text(self) -> str: ...


Text = TypeVar("Text", bound=HasText)


def train_tokenizer(texts: Iterable[str], vocabulary_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of ``vocabulary_size`` tokens with T5's layout: <pad> 0, </s> 1, <unk> 2, sentinels last.

    Decoding restores every text exactly, because the BPE is byte-level.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size - SENTINELS,
        special_tokens=["<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_first_characters(texts, TRAINING_CHARACTERS), trainer)
    sentinels = [f"<extra_id_{k}>" for k in reversed(range(SENTINELS))]
    backend.add_tokens([AddedToken(sentinel, special=True, normalized=False) for sentinel in sentinels])
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=list(reversed(sentinels)),
        model_max_length=10**6,
    )


def train_on_split(
    documents: Iterator[tuple[str, Text]], vocabulary_size: int, characters: int = TRAINING_CHARACTERS
) -> tuple[PreTrainedTokenizerFast, Iterator[tuple[str, Text]]]:
    """Train a tokenizer on the first training texts.

    Args:
        documents: pairs of the name of a split and a document with the attribute ``text``.
        vocabulary_size: number of tokens.
        characters: of training text, after which reading stops.

    Returns:
        The tokenizer, and an iterator over all documents from the first one.
    """
    kept: deque[tuple[str, Text]] = deque()
    of_training = of_all = 0
    for part, document in documents:
        kept.append((part, document))
        of_all += len(document.text)
        of_training += len(document.text) if part == "train" else 0
        if of_training >= characters or of_all >= 4 * characters:  # bounds the memory
            break
    tokenizer = train_tokenizer((document.text for part, document in kept if part == "train"), vocabulary_size)
    again = (kept.popleft() for _ in range(len(kept)))  # frees each document after its use
    return tokenizer, itertools.chain(again, documents)


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerFast:
    """Load a fast tokenizer with transformers, from ``tokenizer.json`` or from SentencePiece's ``spiece.model``.

    Code in the source is never run.

    Args:
        source: a directory, or a name on the hub that may be pinned (``NAME@REVISION``).

    Raises:
        UserError: it cannot be loaded, has no fast version, or ``find_special_tokens`` rejects it.
    """
    directory = local_files(str(source), "model", f"tokenizer {str(source)!r}", TOKENIZER)
    files = {path.name for path in directory.iterdir()}
    # A directory with only a SentencePiece model does not name its class; only T5 uses this file name.
    kind = T5Tokenizer if "spiece.model" in files and not files & _NAMES_ITS_CLASS else AutoTokenizer
    try:
        tokenizer: Any = kind.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds; each means that this tokenizer cannot be used
        cause = str(error).strip().split("\n")[0]
        raise UserError(f"tokenizer {str(source)!r} cannot be loaded: {cause}") from error
    if not tokenizer.is_fast:
        raise UserError(f"tokenizer {str(source)!r} has no fast version (tokenizer.json); convert it first")
    tokenizer.name_or_path = str(source)  # for messages; otherwise a directory of the hub's cache
    find_special_tokens(tokenizer)
    return tokenizer


def find_special_tokens(tokenizer: PreTrainedTokenizerFast) -> SpecialTokens:
    """Find pad, eos and the sentinels <extra_id_0>, <extra_id_1>, ..., whose ids descend by one as in T5.

    Raises:
        UserError: one of them is missing, or the sentinels do not descend by one.
    """
    name = tokenizer.name_or_path or "trained"
    for kind in ("pad", "eos"):
        if getattr(tokenizer, f"{kind}_token_id") is None:
            raise UserError(f"tokenizer {name!r} has no {kind} token; use one made for T5, or data.tokenizer: train")
    vocabulary = tokenizer.get_vocab()
    ids: list[int] = []
    while (sentinel := vocabulary.get(f"<extra_id_{len(ids)}>")) is not None:
        ids.append(sentinel)
    if not ids:
        raise UserError(
            f"tokenizer {name!r} has no sentinels <extra_id_0>, <extra_id_1>, ...; "
            "use one made for T5, or data.tokenizer: train"
        )
    if ids != list(range(ids[0], ids[0] - len(ids), -1)):
        raise UserError(f"the sentinels of tokenizer {name!r} do not descend by one from <extra_id_0>, as in T5")
    return SpecialTokens(len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id, ids[0], len(ids))


def encode_texts(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, without eos. The text of a special token is tokenised like any other text."""
    backend, special, unknown = _text_backend(tokenizer)
    rows = [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
    # A text that contains a hidden name (see _text_backend) would still give a special id.
    return [ids if special.isdisjoint(ids) else _without(ids, special, unknown) for ids in rows]


def unknown_id(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """The id of the unknown token, or None if the tokenizer can encode every text."""
    if tokenizer.unk_token_id is not None:
        return tokenizer.unk_token_id
    token = getattr(tokenizer.backend_tokenizer.model, "unk_token", None)
    return tokenizer.backend_tokenizer.token_to_id(token) if token else None


def _without(ids: list[int], special: frozenset[int], unknown: int | None) -> list[int]:
    replaced = (unknown if one in special else one for one in ids)
    return [one for one in replaced if one is not None]


@lru_cache(maxsize=8)  # a large vocabulary takes a tenth of a second
def _text_backend(tokenizer: PreTrainedTokenizerFast) -> tuple[Tokenizer, frozenset[int], int | None]:
    """A copy of the tokenizer that never encodes text as a special token; the special ids; the unknown token's id.

    ``encode_special_tokens`` is not sufficient. It covers added tokens, but T5's special tokens are also in the
    vocabulary of the Unigram model, which prefers them to any other segmentation. So the copy renames them.
    """
    unknown = unknown_id(tokenizer)
    known = find_special_tokens(tokenizer)
    sentinels = range(known.sentinel_start - known.sentinels + 1, known.sentinel_start + 1)
    special = {*tokenizer.all_special_ids, *sentinels}
    hidden = {token: f"{_HIDDEN}{token}" for token, number in tokenizer.get_vocab().items() if number in special}
    values = json.loads(tokenizer.backend_tokenizer.to_str())
    values |= {"truncation": None, "padding": None, "post_processor": None}
    for added in values["added_tokens"]:
        added["content"] = hidden.get(added["content"], added["content"])
    model = values["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {hidden.get(token, token): number for token, number in model["vocab"].items()}
    else:  # Unigram, with a score for each token
        model["vocab"] = [[hidden.get(token, token), score] for token, score in model["vocab"]]
    if model.get("unk_token"):
        model["unk_token"] = hidden.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        model["merges"] = [pair for pair in model["merges"] if hidden.keys().isdisjoint([*pair, "".join(pair)])]
    backend = Tokenizer.from_str(json.dumps(values))
    backend.encode_special_tokens = True
    return backend, frozenset(special - {unknown}), unknown


def _first_characters(texts: Iterable[str], limit: int) -> Iterator[str]:
    for text in texts:
        if limit <= 0:
            return
        yield text[:limit]
        limit -= len(text)
