"""The ids that the objective needs of a tokenizer, and how ids are stored. Needs neither torch nor transformers."""

from typing import NamedTuple

import numpy as np


class SpecialTokens(NamedTuple):
    """Sentinel k is ``sentinel_start - k``, for k < ``sentinels``."""

    size: int
    pad: int
    eos: int
    sentinel_start: int
    sentinels: int


def token_type(vocabulary: int) -> type:
    """The smallest of two types that holds every id."""
    return np.uint16 if vocabulary <= 2**16 else np.uint32


def embedding_rows(words: int) -> int:
    """Words rounded up to a multiple of 128, as T5 does (32,100 -> 32,128)."""
    return -(-words // 128) * 128
