"""A trained or a loaded tokenizer, checked for what T5's objective needs."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from distill.errors import UserError
from distill.hub import at_revision
from distill.word_ids import WordIds

SENTINELS = 100
TRAINING_CHARACTERS = 200_000_000  # enough for any vocabulary here, and bounded on a corpus like C4


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of ``vocabulary`` words, laid out like T5's: <pad> 0, </s> 1, <unk> 2, sentinels last.

    Byte-level, so that decoding gives back every text exactly.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - SENTINELS,
        special_tokens=["<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_first_characters(texts, TRAINING_CHARACTERS), trainer)
    sentinels = [f"<extra_id_{k}>" for k in reversed(range(SENTINELS))]
    backend.add_tokens([AddedToken(word, special=True, normalized=False) for word in sentinels])
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=list(reversed(sentinels)),
        model_max_length=10**6,
    )


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerFast:
    """Any tokenizer that transformers loads from a directory, or from the hub as ``NAME`` or ``NAME@REVISION``.

    Never runs code of the source.

    Raises:
        UserError: it cannot be loaded, or lacks something that ``word_ids`` needs.
    """
    name, revision = at_revision(str(source), "model", f"tokenizer {str(source)!r}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision or "main", trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds; each means that this tokenizer cannot be used
        cause = str(error).strip().split("\n")[0]
        raise UserError(f"tokenizer {str(source)!r} cannot be loaded: {cause}") from error
    if not tokenizer.is_fast:
        raise UserError(f"tokenizer {str(source)!r} has no fast version (tokenizer.json); convert it first")
    word_ids(tokenizer)
    return tokenizer


def word_ids(tokenizer: PreTrainedTokenizerFast) -> WordIds:
    """Find pad, eos and the sentinels <extra_id_0>, <extra_id_1>, ... that descend by one as in T5.

    Raises:
        UserError: one of them is missing, or the sentinels do not descend by one.
    """
    name = tokenizer.name_or_path or "trained"
    for word in ("pad", "eos"):
        if getattr(tokenizer, f"{word}_token_id") is None:
            raise UserError(f"tokenizer {name!r} has no {word} token; use one made for T5, or data.tokenizer: train")
    vocabulary = tokenizer.get_vocab()
    ids = list(itertools.takewhile(lambda i: i is not None, (vocabulary.get(f"<extra_id_{k}>") for k in range(1000))))
    if not ids:
        raise UserError(
            f"tokenizer {name!r} has no sentinels <extra_id_0>, <extra_id_1>, ...; "
            "use one made for T5, or data.tokenizer: train"
        )
    if ids != list(range(ids[0], ids[0] - len(ids), -1)):
        raise UserError(f"the sentinels of tokenizer {name!r} do not descend by one from <extra_id_0> as T5's do")
    return WordIds(len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id, ids[0], len(ids))


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """Token ids per text, without eos. Special words that stand in a text are cut like any other text."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def _first_characters(texts: Iterable[str], limit: int) -> Iterator[str]:
    for text in texts:
        if limit <= 0:
            return
        yield text[:limit]
        limit -= len(text)
