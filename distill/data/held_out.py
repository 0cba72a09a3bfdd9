"""The choice of evaluated examples from a held-out text, and the document of each example.

A document of at least the length of an example is cut into whole examples. Shorter documents are concatenated until
they fill one example, and together count as one document. So no two documents share an example.
"""

from typing import NamedTuple

import numpy as np


class Layout(NamedTuple):
    """The texts of a split, ordered by document, long documents first. Positions are token positions in this order."""

    begin: np.ndarray  # [texts], first token of a text in the split's file
    end: np.ndarray  # [texts], position after the last token of a text
    units: np.ndarray  # [units, 2], first position and length of each unit, which counts as one document
    length: int  # tokens of an example

    @property
    def available(self) -> np.ndarray:
        """Number of examples that fit into each unit, [units]."""
        return self.units[:, 1] // self.length


class EvaluatedExamples(NamedTuple):
    """N examples of L raw tokens each."""

    tokens: np.ndarray  # [N, L]
    documents: np.ndarray  # [N], index of the unit that an example is from


def make_layout(ends: np.ndarray, documents: np.ndarray, length: int) -> Layout:
    """The layout of a split for examples of ``length`` tokens.

    Args:
        ends: [texts], position after the last token of each text, in the order of the file.
        documents: [texts], a number that is equal for all texts of a document.
        length: tokens per example.
    """
    begins = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    sizes = ends.astype(np.int64) - begins
    _, first, number = np.unique(documents, return_index=True, return_inverse=True)
    total = np.bincount(number, sizes, len(first)).astype(np.int64)
    order = np.lexsort((np.arange(len(ends)), first[number], total[number] < length))
    end = np.cumsum(sizes[order])
    last = np.flatnonzero(np.diff(number[order], append=-1))  # the last text of each document
    document_end = end[last]
    document_start = np.concatenate([[0], document_end[:-1]])
    units, start = [], None
    for begin, stop in zip(document_start.tolist(), document_end.tolist(), strict=True):
        if stop - begin >= length:
            units.append((begin, stop - begin))
            continue
        start = begin if start is None else start
        if stop - start >= length:
            units.append((start, length))
            start = None
    return Layout(begins[order], end, np.array(units, dtype=np.int64).reshape(-1, 2), length)


def choose_examples(tokens: np.ndarray, layout: Layout, count: int) -> EvaluatedExamples:
    """Choose ``count`` examples, as evenly as possible from all documents, spread over each document.

    Consecutive examples are of different documents: the tokens of one document tend to choose the same experts, and a
    batch of them would exceed the experts' capacity.

    Args:
        tokens: [tokens], all token ids of the split.
        layout: with at least ``count`` available examples.
        count: number of examples.
    """
    given = even_shares(layout.available, count)
    turn = np.concatenate([np.arange(number) for number in given])
    unit = np.repeat(np.arange(len(given)), given)
    begin = layout.units[unit, 0] + turn * layout.available[unit] // given[unit] * layout.length
    order = np.lexsort((unit, turn))
    positions = begin[order, None] + np.arange(layout.length)
    text = np.searchsorted(layout.end, positions, side="right")
    sizes = np.diff(layout.end, prepend=0)
    places = layout.begin[text] + positions - (layout.end - sizes)[text]
    return EvaluatedExamples(np.asarray(tokens)[places], unit[order])


def even_shares(available: np.ndarray, count: int) -> np.ndarray:
    """Shares that add up to ``count``, at most ``available``, with the smallest possible maximum."""
    low, high = 0, count  # search the largest share that all can have
    while low < high:
        middle = (low + high + 1) // 2
        if np.minimum(available, middle).sum() <= count:
            low = middle
        else:
            high = middle - 1
    shares = np.minimum(available, low)
    more = np.flatnonzero(available > low)
    left = count - int(shares.sum())
    shares[more[np.arange(left) * len(more) // max(left, 1)]] += 1
    return shares
