"""The token ids that the objective needs, and the type that stores ids. Does not import torch or transformers."""

from typing import NamedTuple

import numpy as np


class SpecialTokens(NamedTuple):
    """Special token ids of a tokenizer. Sentinel k has the id ``sentinel_start - k``, for k < ``sentinels``."""

    vocabulary_size: int  # number of tokens, including added tokens
    pad: int
    eos: int
    sentinel_start: int
    sentinels: int


def token_type(vocabulary_size: int) -> type:
    """uint16 if it holds every id of the vocabulary, otherwise uint32."""
    return np.uint16 if vocabulary_size <= 2**16 else np.uint32


def embedding_rows(vocabulary_size: int) -> int:
    """``vocabulary_size`` rounded up to a multiple of 128, as in T5 (32,100 -> 32,128)."""
    return -(-vocabulary_size // 128) * 128
