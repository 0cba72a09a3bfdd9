"""Evaluated examples are whole, of one document each, and chosen as evenly as possible from all documents."""

import numpy as np
import pytest

from distill.data.held_out import choose_examples, make_layout


def part(sizes: list[int], names: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens that encode their text and position, the ends of texts, and the document of each text."""
    tokens = np.concatenate([1000 * text + np.arange(size) for text, size in enumerate(sizes)])
    return tokens, np.cumsum(sizes), np.array(names, dtype=np.uint64)


def test_long_documents_give_whole_examples_of_their_own():
    tokens, ends, names = part([25, 7, 31], [5, 6, 7])
    chosen = choose_examples(tokens, make_layout(ends, names, 10), 5)
    texts = chosen.tokens // 1000
    assert (texts == texts[:, :1]).all() and set(texts[:, 0]) == {0, 2}  # 7 tokens are fewer than one example
    assert len({tuple(row) for row in chosen.tokens}) == 5
    for text, document in ((0, 0), (2, 1)):
        own = chosen.tokens[texts[:, 0] == text] % 1000
        assert (np.diff(own, axis=1) == 1).all() and (own[:, 0] % 10 == 0).all()
        assert set(chosen.documents[texts[:, 0] == text]) == {document}


def test_short_documents_fill_an_example_together_and_count_as_one():
    tokens, ends, names = part([4] * 9, list(range(9)))
    layout = make_layout(ends, names, 10)
    assert layout.available.tolist() == [1, 1, 1]  # three documents per example; the last is cut
    chosen = choose_examples(tokens, layout, 3)
    used = [set(row // 1000) for row in chosen.tokens]
    assert used == [{0, 1, 2}, {3, 4, 5}, {6, 7, 8}] and chosen.documents.tolist() == [0, 1, 2]


def test_texts_of_one_group_are_one_document_wherever_they_stand():
    """Texts 0, 2 and 4 form one group. An example may span them, but not texts of other groups."""
    tokens, ends, names = part([8, 12, 8, 12, 8], [1, 2, 1, 3, 1])
    layout = make_layout(ends, names, 12)
    chosen = choose_examples(tokens, layout, 4)
    documents = {frozenset(row // 1000): number for row, number in zip(chosen.tokens, chosen.documents, strict=True)}
    assert documents[frozenset({0, 2})] == documents[frozenset({2, 4})]
    assert len({documents[frozenset({1})], documents[frozenset({3})], documents[frozenset({0, 2})]}) == 3


@pytest.mark.parametrize("count", [1, 3, 7, 20, 33, 60, 95, 115])
def test_no_document_gives_more_than_it_must(count):
    """Compared with brute force: take one example at a time from the document with the fewest so far."""
    sizes = [10, 200, 33, 400, 57, 21, 310, 90, 44]
    tokens, ends, names = part(sizes, list(range(9)))
    layout = make_layout(ends, names, 10)
    available, given = layout.available.tolist(), [0] * 9
    assert available == [size // 10 for size in sizes] and sum(available) == 115
    for _ in range(count):
        given[min((n for n in range(9) if given[n] < available[n]), key=lambda n: given[n])] += 1
    chosen = choose_examples(tokens, layout, count)
    found = np.bincount(chosen.documents, minlength=9)
    assert sorted(found) == sorted(given) and found.sum() == count
    assert len({tuple(row) for row in chosen.tokens}) == count


def test_examples_are_spread_over_their_document_and_neighbours_are_of_different_ones():
    tokens, ends, names = part([1000, 1000, 1000], [1, 2, 3])
    chosen = choose_examples(tokens, make_layout(ends, names, 10), 12)
    assert sorted(chosen.tokens[chosen.documents == 1, 0] % 1000) == [0, 250, 500, 750]
    assert chosen.documents.tolist() == [0, 1, 2] * 4


def test_nothing_comes_of_too_little_text():
    _, ends, names = part([3, 4], [1, 2])
    assert make_layout(ends, names, 10).available.sum() == 0
