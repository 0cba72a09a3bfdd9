"""The vocabulary of a tokenizer, compared with transformers', and the comparison of two tokenizers."""

import random

import pytest
from transformers import T5Tokenizer

from distill.data.vocabulary import check_same_vocabulary, read_vocabulary
from distill.errors import UserError
from tests.distill.data.test_special_tokens import sentencepiece_model
from tests.hub import new_python

_READ = """
import sys
from distill.data.vocabulary import read_vocabulary
for source in sys.argv[1:]:
    vocabulary = read_vocabulary(source, "it")
    print(vocabulary and (len(vocabulary), vocabulary["<extra_id_0>"]), "transformers" in sys.modules)
"""


def test_tokens_and_ids_are_those_of_transformers(data, tmp_path):
    data.tokenizer.save_pretrained(tmp_path)
    assert read_vocabulary(tmp_path, "it") == data.tokenizer.get_vocab() == data.vocabulary
    assert len(data.vocabulary) == data.special_tokens.vocabulary_size


def test_tokens_of_a_sentencepiece_model_have_the_sentinels_too(tmp_path):
    sentencepiece_model(tmp_path, "unigram")
    vocabulary = read_vocabulary(tmp_path, "it")
    assert vocabulary == T5Tokenizer.from_pretrained(tmp_path).get_vocab()
    assert len(vocabulary) == 500 and vocabulary["</s>"] == 1


def test_a_directory_without_a_tokenizer_has_no_vocabulary(tmp_path):
    assert read_vocabulary(tmp_path, "it") is None
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"it has a tokenizer.json that cannot be read \(.*\); copy it again"):
        read_vocabulary(tmp_path, "it")


def test_tokens_of_the_hub_are_of_their_revision(hub, data, tmp_path):
    data.tokenizer.save_pretrained(tmp_path)
    model = hub.model("some/model")
    model.commit(tmp_path, "v1")
    model.commit({"config.json": "{}"})
    found = f"({data.special_tokens.vocabulary_size}, {data.special_tokens.sentinel_start}) False"
    assert new_python(_READ, "some/model@v1", "some/model", **hub.environment).splitlines() == [found, "None False"]
    offline = {**hub.environment, "HF_HUB_OFFLINE": "1"}
    assert new_python(_READ, "some/model", **offline).splitlines() == ["None False"]
    assert new_python(_READ, "some/model@v1", **offline).splitlines() == [found]


def refusal(one: dict[str, int], other: dict[str, int]) -> str:
    with pytest.raises(UserError) as raised:
        check_same_vocabulary(one, other, ("A", "B"), "do this")
    return str(raised.value)


def test_one_tokenizer_may_have_more_tokens():
    vocabulary = {"a": 0, "b": 1, "c": 2}
    for other in ({"a": 0, "b": 1, "c": 2}, {"a": 0, "b": 1}, {**vocabulary, "d": 3}, {"d": 7}, {}):
        check_same_vocabulary(vocabulary, other, ("A", "B"), "")


def test_the_tokens_that_differ_are_counted_and_the_first_are_named():
    tokens = [f"token{number}" for number in range(50)]
    shuffled = random.Random(0).sample(tokens, 50)
    differing = [number for number in range(50) if tokens[number] != shuffled[number]]
    one, other = ({token: number for number, token in enumerate(order)} for order in (tokens, shuffled))
    first = ", ".join(f"{n} is '{tokens[n]}' and '{shuffled[n]}'" for n in differing[:3])
    assert refusal(one, other) == (
        f"A and B have different tokenizers: {len(differing)} of 50 tokens differ ({first}, ...); do this"
    )


def test_a_token_that_has_moved_beyond_the_other_ids_differs():
    assert "1 of 2 tokens differ (1 is 'b' and none); do this" in refusal({"a": 0, "b": 1}, {"a": 0, "b": 5})


def test_tokens_of_any_length_fit_into_a_message():
    assert len(refusal({"a" * 5000: 0}, {"\n" * 5000: 0})) < 200
