"""The share of held-out text that the training text contains, compared with sets of windows in plain Python."""

import numpy as np
import pytest

from distill.data import overlap as module
from distill.data.overlap import WINDOW, overlaps, unseen_shares, window_hashes


def overlap(train, held_out) -> float:
    return overlaps(train, [held_out])[0]


def reference(train: list[int], held_out: list[int]) -> float:
    known = {tuple(train[start : start + WINDOW]) for start in range(len(train) - WINDOW + 1)}
    covered = set()
    for start in range(len(held_out) - WINDOW + 1):
        if tuple(held_out[start : start + WINDOW]) in known:
            covered.update(range(start, start + WINDOW))
    return len(covered) / len(held_out)


@pytest.mark.parametrize("seed", range(5))
def test_the_share_is_that_of_the_definition(seed, monkeypatch):
    """Texts with few distinct words, made of the same lines; block borders of the training text cut lines."""
    monkeypatch.setattr(module, "_BLOCK", 100)
    rng = np.random.default_rng(seed)
    lines = [rng.integers(0, 50, rng.integers(3, 60)) for _ in range(40)]
    train = np.concatenate([lines[k] for k in rng.integers(0, 25, 60)]).astype(np.uint16)
    held_out = np.concatenate([lines[k] for k in rng.integers(15, 40, 30)]).astype(np.uint16)
    expected = reference(train.tolist(), held_out.tolist())
    assert 0.1 < expected < 0.9 and overlap(train, held_out) == pytest.approx(expected, abs=1e-12)


def test_all_and_nothing():
    text = np.random.default_rng(0).integers(0, 1000, 500)
    assert overlap(text, text[100:300]) == 1
    assert overlap(text, text[::-1]) == 0
    assert overlap(text, text[: WINDOW - 1]) == 0 and overlap(text[: WINDOW - 1], text) == 0
    assert overlap(text, text[:0]) == 0


def test_parts_are_measured_each_by_itself():
    rng = np.random.default_rng(3)
    train, other = rng.integers(0, 1000, 5000), rng.integers(0, 1000, 300)
    assert overlaps(train, [other, train[50:350], np.concatenate([other, train[:300]])]) == [0, 1, 0.5]
    assert overlaps(train, []) == []


def test_equal_windows_alone_have_equal_hashes():
    tokens = np.random.default_rng(1).integers(0, 3, 200_000).astype(np.uint32)
    hashes = window_hashes(tokens)
    windows = np.lib.stride_tricks.sliding_window_view(tokens, WINDOW)
    assert len(np.unique(hashes)) == len(np.unique(windows, axis=0))
    assert len(hashes) == len(tokens) - WINDOW + 1


def test_a_long_text_is_measured_on_spread_pieces(monkeypatch):
    monkeypatch.setattr(module, "_MOST", 64 * 64)
    rng = np.random.default_rng(2)
    train, other = rng.integers(0, 1000, 60_000), rng.integers(1000, 2000, 60_000)
    assert overlap(train, np.concatenate([train, other])) == pytest.approx(0.5, abs=0.02)


def test_the_unseen_tokens_are_those_that_training_never_has(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 7)
    rng = np.random.default_rng(4)
    train, parts = rng.integers(0, 60, 50), [rng.integers(0, 90, 40), rng.integers(0, 20, 30)]
    expected = [sum(token not in set(train.tolist()) for token in part.tolist()) / len(part) for part in parts]
    assert unseen_shares(train.astype(np.uint16), [part.astype(np.uint16) for part in parts]) == pytest.approx(expected)
    assert expected[0] > expected[1] > 0
    assert unseen_shares(train, [train[:0], train]) == [0, 0]
