"""What a held-out text has in common with the training text: windows of tokens, and tokens, in bounded memory."""

import numpy as np

WINDOW = 16  # tokens, about a line of text; a power of two
_MOST = 2**22  # held-out tokens that are searched; a longer text is sampled in evenly spread pieces
_PIECES = 64
_BLOCK = 2**20  # training tokens that are hashed at a time
_FILTER_BITS = 24  # a table of 16 MiB excludes most windows of the training text without a search
_MULTIPLIER = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio, as in splitmix64


def overlaps(train: np.ndarray, parts: list[np.ndarray]) -> list[float]:
    """For each held-out part, the share of its tokens inside a ``WINDOW`` of tokens that is in the training text.

    Args:
        train: token ids, [tokens], of any length, may be memory-mapped; it is read once.
        parts: token ids of each held-out part, [tokens].

    Returns:
        Shares in [0, 1]. For a part of more than 4 million tokens, the share is that of evenly spread pieces.
    """
    pieces = [_spread(part) for part in parts]
    windows = [[window_hashes(piece) for piece in of_part] for of_part in pieces]
    wanted = np.sort(np.concatenate([np.empty(0, np.uint64), *(one for of_part in windows for one in of_part)]))
    wanted = wanted[np.flatnonzero(np.diff(wanted, prepend=~wanted[:1]))]  # unique; np.unique is many times as slow
    found = _found_in(train, wanted) if len(wanted) else np.empty(0, bool)
    return [_share(*of_part, wanted, found) for of_part in zip(pieces, windows, strict=True)]


def unseen_shares(train: np.ndarray, parts: list[np.ndarray]) -> list[float]:
    """For each held-out part, the share of its tokens whose id never occurs in the training text.

    A model knows nothing of such a token. Each may cost many nats, so that a few of them decide a comparison.

    Args:
        train: token ids, [tokens], of any length, may be memory-mapped; it is read once.
        parts: token ids of each held-out part, [tokens].

    Returns:
        Shares in [0, 1]; 0 for an empty part.
    """
    size = 1 + max((int(part.max()) for part in parts if len(part)), default=0)
    seen = np.zeros(size, bool)
    for start in range(0, len(train), _BLOCK):
        ids = train[start : start + _BLOCK]
        seen[ids[ids < size]] = True
    return [float(np.mean(~seen[part])) if len(part) else 0.0 for part in parts]


def _share(pieces: list[np.ndarray], windows: list[np.ndarray], wanted: np.ndarray, found: np.ndarray) -> float:
    shared = 0
    for piece, hashes in zip(pieces, windows, strict=True):
        starts = np.zeros(len(piece), bool)  # positions where a window of the training text begins
        starts[: len(hashes)] = found[np.searchsorted(wanted, hashes)]
        reached = np.cumsum(starts)
        before = np.concatenate([np.zeros(WINDOW, reached.dtype), reached])[: len(piece)]
        shared += int((reached > before).sum())  # such a window begins at one of the last WINDOW tokens
    return shared / max(sum(map(len, pieces)), 1)


def window_hashes(tokens: np.ndarray) -> np.ndarray:
    """64-bit hashes of all windows of ``WINDOW`` tokens: [tokens - WINDOW + 1]; empty if there are fewer tokens."""
    if len(tokens) < WINDOW:
        return np.empty(0, np.uint64)
    hashes = _mixed(np.asarray(tokens).astype(np.uint64) + np.uint64(1))
    width, factor = 1, _MULTIPLIER
    while width < WINDOW:  # combines hashes of n tokens to hashes of 2n (a polynomial hash)
        hashes = hashes[:-width] * np.uint64(factor) + hashes[width:]
        width, factor = 2 * width, factor * factor % 2**64
    return _mixed(hashes)


def _found_in(train: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Which of the hashes ``wanted`` (sorted, unique) the training text has: bool, [wanted]."""
    shift = np.uint64(64 - _FILTER_BITS)
    possible = np.zeros(2**_FILTER_BITS, bool)
    possible[wanted >> shift] = True
    found = np.zeros(len(wanted), bool)
    for start in range(0, len(train), _BLOCK):
        hashes = window_hashes(train[start : start + _BLOCK + WINDOW - 1])
        hashes = hashes[possible[hashes >> shift]]
        places = np.searchsorted(wanted, hashes)
        places[places == len(wanted)] = 0  # a hash above the last one has no equal
        found[places[wanted[places] == hashes]] = True
    return found


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64: each input bit affects all output bits."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _spread(tokens: np.ndarray) -> list[np.ndarray]:
    if len(tokens) <= _MOST:
        return [np.asarray(tokens)]
    length = _MOST // _PIECES
    return [
        np.asarray(tokens[start : start + length]) for start in np.linspace(0, len(tokens) - length, _PIECES, dtype=int)
    ]
