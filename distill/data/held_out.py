"""Which pieces of a held-out text models are evaluated on, and the document that each is from.

The text is cut by document: a document gives whole examples of its own, and documents that are shorter than an example
are put together until they fill one, which then counts as one document. So no two documents share an example.
"""

from typing import NamedTuple

import numpy as np


class Layout(NamedTuple):
    """A part's texts, those of one document side by side, long documents first. Positions are in that order."""

    begin: np.ndarray  # [texts], first token of a text in the part's file
    end: np.ndarray  # [texts], position after the last token of a text
    units: np.ndarray  # [units, 2], first position and length of what counts as one document
    length: int  # tokens of an example

    @property
    def available(self) -> np.ndarray:
        """Examples that each unit can give, [units]."""
        return self.units[:, 1] // self.length


class EvaluatedExamples(NamedTuple):
    """N examples of L raw tokens each."""

    tokens: np.ndarray  # [N, L]
    documents: np.ndarray  # [N], the number of the document that an example is from


def make_layout(ends: np.ndarray, documents: np.ndarray, length: int) -> Layout:
    """The documents of a part that examples of ``length`` tokens can be cut from.

    Args:
        ends: [texts], token after the last one of each text, in the order of the file.
        documents: [texts], what tells the document of each text.
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
    """``count`` examples, as evenly from all documents as these allow, spread over each.

    Neighbours are of different documents: in a batch of one document's examples, a teacher's tokens would all want the
    same experts.

    Args:
        tokens: of the part, [tokens]; ``layout`` has at least ``count`` examples available.
    """
    given = _shares(layout.available, count)
    turn = np.concatenate([np.arange(number) for number in given])
    unit = np.repeat(np.arange(len(given)), given)
    begin = layout.units[unit, 0] + turn * layout.available[unit] // given[unit] * layout.length
    order = np.lexsort((unit, turn))
    positions = begin[order, None] + np.arange(layout.length)
    text = np.searchsorted(layout.end, positions, side="right")
    sizes = np.diff(layout.end, prepend=0)
    places = layout.begin[text] + positions - (layout.end - sizes)[text]
    return EvaluatedExamples(np.asarray(tokens)[places], unit[order])


def _shares(available: np.ndarray, count: int) -> np.ndarray:
    """How many each gives, so that together they give ``count`` and the most that any gives is as small as can be."""
    low, high = 0, count  # the largest level to which all can be filled
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
