"""Resamples of documents and seeds, the same for every figure of a comparison.

The influence of a seed and a document is the change of a figure, to first order, if they are counted once more, times
their number. So a resample changes the figure by the mean influence of the drawn documents and seeds.

Shapes: S seeds, D documents.
"""

from functools import lru_cache

import numpy as np

Interval = tuple[float, float]
_BLOCK = 1000  # resamples per block; bounds the memory for weights in floating point


def resampled(influence: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """The mean of ``influence`` [S, D] in each resample of documents and seeds, [resamples]."""
    seeds, documents = influence.shape
    of_documents, of_seeds = _draws(documents, seeds, resamples, seed)
    means = []
    for start in range(0, resamples, _BLOCK):
        block = slice(start, start + _BLOCK)
        means.append(((of_documents[block] @ influence.T) * of_seeds[block]).sum(axis=1) / influence.size)
    return np.concatenate(means)


# Two, because each row of a report alternates between draws of all its seeds and of a single seed.
@lru_cache(maxsize=2)
def _draws(documents: int, seeds: int, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Number of times that each document [resamples, D] and each seed [resamples, S] is drawn in each resample."""
    rng = np.random.default_rng(seed)
    small = np.uint16 if max(documents, seeds) < 2**16 else np.uint32
    blocks = [min(_BLOCK, resamples - start) for start in range(0, resamples, _BLOCK)]
    drawn = [
        [rng.multinomial(count, np.full(count, 1 / count), size=size).astype(small) for size in blocks]
        for count in (documents, seeds)
    ]
    return np.concatenate(drawn[0]), np.concatenate(drawn[1])


def quantile_interval(samples: np.ndarray, confidence: float) -> Interval:
    """Quantiles of ``samples``. A NaN, which is a mean of infinities of both signs, counts as both infinities."""
    with np.errstate(invalid="ignore"):  # interpolation between a number and infinity
        low = np.quantile(np.nan_to_num(samples, nan=-np.inf, posinf=np.inf, neginf=-np.inf), (1 - confidence) / 2)
        high = np.quantile(np.nan_to_num(samples, nan=np.inf, posinf=np.inf, neginf=-np.inf), (1 + confidence) / 2)
    return float(low), float(high)
