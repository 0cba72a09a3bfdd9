"""The tokens of a tokenizer and their ids, read without transformers, and the comparison of two tokenizers."""

from pathlib import Path

from tokenizers import Tokenizer

from distill.errors import UserError
from distill.io.hub_files import TOKENIZER, HubFilesUnavailable, local_files

Vocabulary = dict[str, int]  # token -> id

_SHOWN = 3  # tokens that a message names


def read_vocabulary(source: str | Path, description: str) -> Vocabulary | None:
    """The tokens of the tokenizer in a directory or a repository, including added tokens.

    Args:
        source: a directory, or a name on the hub that may be pinned (``NAME@REVISION``).
        description: names the source in messages.

    Returns:
        token -> id. None if the source has neither ``tokenizer.json`` nor ``spiece.model``, or if the hub cannot be
        reached and the local cache has neither.

    Raises:
        UserError: the source does not exist, or its tokenizer is damaged.
    """
    try:
        directory = local_files(str(source), "model", description, TOKENIZER)
    except HubFilesUnavailable:
        return None
    if (path := directory / "tokenizer.json").is_file():
        try:
            return Tokenizer.from_file(str(path)).get_vocab()
        except Exception as error:  # tokenizers raises Exception itself
            cause = " ".join(str(error).split())[:200]
            raise UserError(
                f"{description} has a tokenizer.json that cannot be read ({cause}); copy it again"
            ) from error
    if (directory / "spiece.model").is_file():
        from distill.data.tokenizer import load_tokenizer

        return load_tokenizer(source).get_vocab()
    return None


def check_same_vocabulary(one: Vocabulary, other: Vocabulary, names: tuple[str, str], hint: str) -> None:
    """Check that each id that both tokenizers have is the same token in both. One may have more tokens.

    Args:
        one, other: the vocabularies.
        names: of the tokenizers' owners, for the message.
        hint: the end of the message.

    Raises:
        UserError: tokens differ; the message names the first ones.
    """
    tokens, others = _by_id(one), _by_id(other)
    moved = {id_ for token, id_ in one.items() if other.get(token, id_) != id_}
    replaced = {id_ for id_, token in tokens.items() if others.get(id_, token) != token}
    if differing := sorted(moved | replaced):
        shown = ", ".join(f"{id_} is {_shown(tokens, id_)} and {_shown(others, id_)}" for id_ in differing[:_SHOWN])
        more = ", ..." if len(differing) > _SHOWN else ""
        raise UserError(
            f"{names[0]} and {names[1]} have different tokenizers: {len(differing):,} of {len(one):,} tokens differ "
            f"({shown}{more}); {hint}"
        )


def _by_id(vocabulary: Vocabulary) -> dict[int, str]:
    return {id_: token for token, id_ in vocabulary.items()}


def _shown(tokens: dict[int, str], id_: int) -> str:
    return f"{tokens[id_]!r:.24}" if id_ in tokens else "none"
