"""The ids that the objective needs of a tokenizer, and how ids are stored. Needs neither torch nor transformers."""

from typing import NamedTuple

import numpy as np


class SpecialTokens(NamedTuple):
    """Ids of a tokenizer. Sentinel k is ``sentinel_start - k``, for k < ``sentinels``."""

    vocabulary_size: int  # tokens of the tokenizer, added ones included
    pad: int
    eos: int
    sentinel_start: int
    sentinels: int


def token_type(vocabulary_size: int) -> type:
    """The smallest of two types that holds every id."""
    return np.uint16 if vocabulary_size <= 2**16 else np.uint32


def embedding_rows(vocabulary_size: int) -> int:
    """``vocabulary_size`` rounded up to a multiple of 128, as T5 does (32,100 -> 32,128)."""
    return -(-vocabulary_size // 128) * 128
