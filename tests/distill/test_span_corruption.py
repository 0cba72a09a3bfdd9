import numpy as np
import pytest

from distill.errors import UserError
from distill.span_corruption import corrupt_spans, raw_length_for, span_lengths

SENTINEL, EOS = 1999, 1


def rebuild(inputs: np.ndarray, targets: np.ndarray) -> list[int]:
    """Replace each sentinel of the inputs with its span from the targets."""
    assert inputs[-1] == EOS and targets[-1] == EOS
    spans: dict[int, list[int]] = {}
    for token in targets[:-1]:
        if token > 1000:
            current = spans.setdefault(int(token), [])
        else:
            current.append(int(token))
    text: list[int] = []
    for token in inputs[:-1]:
        text += spans.pop(int(token)) if token > 1000 else [int(token)]
    assert not spans
    return text


def test_lengths_of_t5():
    assert span_lengths(568) == (85, 28, 512, 114)
    assert raw_length_for(512) == 568


@pytest.mark.parametrize("length", [8, 16, 31, 64, 128, 257, 512, 1024])
def test_every_input_length_is_reached_exactly_and_by_the_most_raw_tokens(length):
    raw = raw_length_for(length)
    assert span_lengths(raw).inputs == length
    assert span_lengths(raw + 1).inputs > length


@pytest.mark.parametrize("length", [10, 35, 141, 568])
@pytest.mark.parametrize("density,mean_span", [(0.15, 3.0), (0.3, 1.0), (0.5, 8.0)])
def test_round_trip(length, density, mean_span):
    shape = {"noise_density": density, "mean_span_length": mean_span}
    noise, spans, num_inputs, num_targets = span_lengths(length, **shape)
    for seed in range(20):
        tokens = np.random.default_rng(seed).integers(2, 900, length)
        inputs, targets = corrupt_spans(tokens, np.random.default_rng(seed), **shape, sentinel_start=SENTINEL, eos=EOS)
        assert (len(inputs), len(targets)) == (num_inputs, num_targets)
        assert rebuild(inputs, targets) == tokens.tolist()
        sentinels = [token for token in inputs if token > 1000]
        assert sentinels == list(range(SENTINEL, SENTINEL - spans, -1))
        assert (targets[:-1] <= 1000).sum() == noise


def test_a_row_does_not_depend_on_its_batch():
    tokens = np.random.default_rng(0).integers(2, 900, (4, 141))
    together = corrupt_spans(tokens, [np.random.default_rng(row) for row in range(4)], sentinel_start=SENTINEL, eos=EOS)
    for row in range(4):
        alone = corrupt_spans(tokens[row], np.random.default_rng(row), sentinel_start=SENTINEL, eos=EOS)
        np.testing.assert_array_equal(together[0][row], alone[0])
        np.testing.assert_array_equal(together[1][row], alone[1])


def test_span_lengths_are_uniform_over_compositions():
    """10 noise tokens in 3 spans: the first span has length k in C(9 - k, 1) of C(9, 2) compositions."""
    tokens = np.arange(2, 2 + 67)
    first = np.zeros(11)
    for seed in range(4000):
        _, targets = corrupt_spans(tokens, np.random.default_rng(seed), sentinel_start=SENTINEL, eos=EOS)
        marks = np.flatnonzero(targets > 1000)
        assert len(marks) == 3
        first[marks[1] - marks[0] - 1] += 1
    expected = np.array([0] + [9 - k for k in range(1, 9)] + [0, 0]) / 36
    np.testing.assert_allclose(first / 4000, expected, atol=0.03)


def test_a_length_that_cannot_be_reached_is_refused():
    with pytest.raises(UserError, match="input_length 8 cannot be reached"):
        raw_length_for(8, noise_density=0.99, mean_span_length=50.0)
