"""Batches of pairs: what is padded, in which order they come, and how much of them is padding."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from distill.data.tokenizer import encode_texts
from distill.tasks.embedded import EMBEDDED
from distill.tasks.examples import PairExamples, TrainingPairs
from distill.tasks.prepared import Pairs

PAD = 0


def make_pairs(inputs, targets, sources=None, vocabulary=50):
    """Pairs of random tokens with these numbers of tokens, none of which is pad."""
    inputs, targets = np.asarray(inputs), np.asarray(targets)
    ends = np.cumsum(inputs + targets)
    starts = np.concatenate([[0], ends[:-1]])
    tokens = np.random.default_rng(0).integers(2, vocabulary, ends[-1]).astype(np.uint16)
    given = np.zeros(len(inputs), np.int64) if sources is None else np.asarray(sources)
    return Pairs(tokens, starts, starts + inputs, ends, given)


def random_pairs(count=103, sources=None):
    rng = np.random.default_rng(1)
    return make_pairs(rng.integers(2, 30, count), rng.integers(2, 12, count), sources)


def texts_of(pairs):
    """The tokens of each pair as lists."""
    parts = zip(pairs.starts, pairs.middles, pairs.ends, strict=True)
    return [(pairs.tokens[a:b].tolist(), pairs.tokens[b:c].tolist()) for a, b, c in parts]


def rows_of(batch):
    """The tokens of each example of a batch without padding, which must be at the end only."""
    found = []
    for inputs, labels in zip(batch.input_ids.tolist(), batch.labels.tolist(), strict=True):
        both = []
        for ids, fill in ((inputs, PAD), (labels, -100)):
            length = len(ids) - ids.count(fill)
            assert ids[length:] == [fill] * (len(ids) - length)
            both.append(ids[:length])
        found.append(tuple(both))
    return found


def epoch(examples, number=0):
    return rows_of(examples.batch(range(number * len(examples), (number + 1) * len(examples))))


def test_a_batch_has_its_examples_padded_to_the_longest_and_no_further():
    pairs = random_pairs()
    rows = np.array([5, 3, 99, 3, 50])
    examples = PairExamples(pairs, rows, pad=PAD)
    batch = examples.batch([4, 0, 1, 2])
    expected = [texts_of(pairs)[row] for row in (50, 5, 3, 99)]
    assert rows_of(batch) == expected and batch.input_ids.dtype == batch.labels.dtype == torch.int64
    assert batch.input_ids.shape == (4, max(len(one) for one, _ in expected))
    assert batch.labels.shape == (4, max(len(one) for _, one in expected))
    assert len(examples) == 5 and examples.target_tokens.tolist() == pairs.target_lengths[rows].tolist()
    assert [one.tolist() for one in examples.inputs()] == [texts_of(pairs)[row][0] for row in rows]
    assert examples.lengths == (pairs.input_lengths[rows].max(), pairs.target_lengths[rows].max())


def test_examples_of_equal_length_have_no_padding():
    examples = PairExamples(make_pairs([7] * 9, [3] * 9), np.arange(9), pad=PAD)
    batch = examples.batch(range(9))
    assert (batch.input_ids != PAD).all() and (batch.labels >= 0).all()


def test_inputs_without_targets_can_be_read():
    pairs = make_pairs([3, 5], [0, 0])
    assert [len(one) for one in PairExamples(pairs, np.arange(2), pad=PAD).inputs()] == [3, 5]


@pytest.mark.parametrize("size", [1, 8, 103])
def test_an_epoch_has_each_example_once_but_for_less_than_a_batch(size):
    pairs = random_pairs()
    examples = TrainingPairs(pairs, pad=PAD, seed=3, batch_size=size)
    assert len(examples) == 103 // size * size
    known, left_out = Counter(map(str, texts_of(pairs))), []
    for number in range(3):
        found = Counter(map(str, epoch(examples, number)))
        assert found.total() == len(examples) and found <= known
        left_out.append(frozenset(known - found))
    if size == 8:
        assert len(set(left_out)) > 1


def test_the_order_depends_on_seed_and_batch_size_alone():
    pairs = random_pairs()

    def make(seed=3, size=8):
        return TrainingPairs(pairs, pad=PAD, seed=seed, batch_size=size)

    first, second = make(), make()
    whole = [rows_of(first.batch([index])) for index in range(250)]
    for index in np.random.default_rng(2).permutation(250).tolist():  # across epochs, back and forth
        assert rows_of(second.batch([index])) == whole[index]
    assert [row for one in whole[:8] for row in one] == rows_of(make().batch(range(8)))
    others = [make(seed=4), make(size=16)]
    assert all(rows_of(other.batch(range(8))) != rows_of(make().batch(range(8))) for other in others)
    assert epoch(make(), 0) != epoch(make(), 1)


def test_weights_are_times_per_epoch():
    sources = np.repeat([0, 1, 2], [400, 200, 80])
    pairs = random_pairs(680, sources)
    of = {str(one): source for one, source in zip(texts_of(pairs), sources.tolist(), strict=True)}
    examples = TrainingPairs(pairs, pad=PAD, seed=0, batch_size=8, weights=[0.5, 2.0, 1.0])
    assert len(examples) == 680
    for number in range(3):
        counts = Counter(map(str, epoch(examples, number)))
        per_source = Counter()
        for one, count in counts.items():
            per_source[of[one]] += count
        # Five standard deviations of the random choice of half of 400 examples.
        assert abs(per_source[0] - 200) <= 50 and abs(per_source[1] - 400) <= 50 and abs(per_source[2] - 80) <= 50
        assert max(counts[one] for one in counts if of[one] == 0) <= 2
    exact = TrainingPairs(pairs, pad=PAD, seed=0, batch_size=8, weights=[1.0, 2.0, 3.0])
    counts = Counter(map(str, epoch(exact)))
    assert len(exact) == 400 + 400 + 240 and all(counts[one] == of[one] + 1 for one in of)


def test_a_task_with_fewer_examples_than_a_batch_repeats_them():
    pairs = random_pairs(5)
    examples = TrainingPairs(pairs, pad=PAD, seed=0, batch_size=8)
    counts = Counter(map(str, epoch(examples)))
    assert len(examples) == 8 and set(counts) == set(map(str, texts_of(pairs))) and set(counts.values()) == {1, 2}


def padding(pairs, size):
    """The share of the tokens of an epoch that are padding."""
    examples = TrainingPairs(pairs, pad=PAD, seed=0, batch_size=size)
    filled = total = 0
    for start in range(0, len(examples), size):
        inputs, labels = examples.batch(range(start, start + size))
        filled += int((inputs != PAD).sum() + (labels >= 0).sum())
        total += inputs.numel() + labels.numel()
    return 1 - filled / total


def docstrings():
    """A third of the files, as input and target of each pair."""
    source = EMBEDDED["stdlib:docstrings"]
    return [(row.values["source"], row.values["summary"]) for row in source.rows(source.files()[::3])]


def names():
    """An eighth of the names."""
    source = EMBEDDED["babel:names"]
    rows = itertools.islice(source.rows(source.files()), 0, None, 8)
    return [(f"{row.values['locale']}: {row.values['english']}", row.values["name"]) for row in rows]


@pytest.mark.parametrize("read,limits,size", [(docstrings, (256, 64), 16), (names, (32, 24), 128)])
def test_little_of_a_batch_is_padding(prepared, read, limits, size):
    encoded = [encode_texts(prepared.tokenizer, list(texts)) for texts in zip(*read(), strict=True)]
    lengths = [[min(len(ids) + 1, limit) for ids in kind] for kind, limit in zip(encoded, limits, strict=True)]
    assert len(lengths[0]) > 1000
    assert padding(make_pairs(*lengths), size) < 0.1
