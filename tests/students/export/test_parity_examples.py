import numpy as np
import pytest
from tokenizers import Tokenizer

from distill.errors import UserError
from students.export.parity_examples import EXAMPLES, LONGEST, MAX_TOKENS, choose_pairs, make_examples, pair_examples


def test_the_examples_of_a_text_have_different_lengths_and_contain_masks_and_eos(data, student):
    tokenizer = Tokenizer.from_file(str(student / "tokenizer.json"))
    examples = make_examples(data.tokens("test"), data.special_tokens, tokenizer)
    assert len(examples.inputs) == EXAMPLES
    lengths = [len(row) for row in examples.inputs]
    assert min(lengths) <= 3 and max(lengths) > 10 and len(set(lengths[:8])) > 3
    assert max(lengths) <= 2 * LONGEST and set(examples.max_tokens) == set(range(MAX_TOKENS - 7, MAX_TOKENS + 1))
    assert all(row[-1] == data.special_tokens.eos for row in (*examples.inputs, *examples.targets))
    assert all(data.special_tokens.sentinel_start in row for row in examples.targets)


def test_too_little_text_is_refused(data, student):
    tokenizer = Tokenizer.from_file(str(student / "tokenizer.json"))
    with pytest.raises(UserError, match="has 500 tokens, and 1024 are needed; give more text"):
        make_examples(np.arange(500), data.special_tokens, tokenizer)


def test_the_chosen_pairs_are_distinct_and_of_all_lengths_in_every_batch():
    lengths = np.random.default_rng(0).permutation(np.arange(3, 1003))
    chosen = choose_pairs(lengths)
    assert len(set(chosen)) == EXAMPLES
    assert {3, 1002} <= set(lengths[chosen])  # the shortest and the longest
    batches = lengths[chosen].reshape(-1, 8)
    assert (batches.max(axis=1) - batches.min(axis=1)).min() > 200
    assert chosen == choose_pairs(lengths)


@pytest.mark.parametrize("number", [1, 2, EXAMPLES])
def test_all_pairs_are_chosen_if_they_are_few(number):
    assert sorted(choose_pairs(np.full(number, 5))) == list(range(number))


def test_the_examples_of_pairs_are_their_tokens():
    inputs, targets = [np.array([5, 6, 1], np.uint16), np.array([7, 1], np.uint16)], [np.array([8, 1]), np.array([1])]
    examples = pair_examples(inputs, targets, 12)
    assert examples == ([[5, 6, 1], [7, 1]], [[8, 1], [1]], [12, 12])
    assert all(type(id_) is int for row in examples.inputs for id_ in row)  # JSON has no numbers of numpy
