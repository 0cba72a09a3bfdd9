import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, T5Tokenizer

from distill.data.tokenizer import encode_texts, find_special_tokens, load_tokenizer, train_tokenizer
from distill.errors import UserError

TEXTS = ["def add(a, b):\n    return a + b\n"] * 50 + ["Grüße, 世界!\t\x00 <extra_id_0> </s>"]


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(TEXTS, 450)


def test_a_trained_tokenizer_is_laid_out_like_t5s(trained):
    special = find_special_tokens(trained)
    assert (special.pad, special.eos, special.sentinels) == (0, 1, 100)
    assert special.sentinel_start == special.vocabulary_size - 1 and special.vocabulary_size <= 450
    assert trained.convert_ids_to_tokens(special.sentinel_start - 7) == "<extra_id_7>"


def test_every_text_is_rebuilt_exactly(trained):
    for text in TEXTS:
        assert trained.decode(encode_texts(trained, [text])[0], clean_up_tokenization_spaces=False) == text


def test_special_words_in_a_text_are_text(trained):
    ids = encode_texts(trained, ["<extra_id_0> </s> <pad>"])[0]
    special = find_special_tokens(trained)
    assert max(ids) <= special.sentinel_start - special.sentinels and min(ids) > 2


def test_a_saved_tokenizer_is_the_same(trained, tmp_path):
    trained.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert find_special_tokens(loaded) == find_special_tokens(trained)
    assert encode_texts(loaded, TEXTS) == encode_texts(trained, TEXTS)


def test_t5s_own_tokenizer(tmp_path):
    sentinels = [(f"<extra_id_{k}>", 0.0) for k in range(99, -1, -1)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁the", -1.0), ("a", -3.0), *sentinels]
    T5Tokenizer(vocab=pieces, extra_ids=100).save_pretrained(tmp_path)
    special = find_special_tokens(load_tokenizer(tmp_path))
    assert (special.vocabulary_size, special.sentinel_start, special.sentinels) == (106, 105, 100)
    assert encode_texts(load_tokenizer(tmp_path), ["the a"]) == [[4, 3, 5]]


def make(vocabulary: list[str], **special) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="x"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


@pytest.mark.parametrize(
    "tokenizer,message",
    [
        (lambda: make(["x", "e"], eos_token="e"), "has no pad token"),
        (lambda: make(["x", "p"], pad_token="p"), "has no eos token"),
        (lambda: make(["x", "p", "e"], pad_token="p", eos_token="e"), "has no sentinels"),
        (
            lambda: make(["x", "p", "e", "<extra_id_0>", "<extra_id_1>"], pad_token="p", eos_token="e"),
            "do not descend by one",
        ),
    ],
)
def test_a_tokenizer_that_cannot_be_used_is_refused(tokenizer, message, tmp_path):
    with pytest.raises(UserError, match=message):
        find_special_tokens(tokenizer())
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=message):
        load_tokenizer(tmp_path)


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(UserError, match="is not a directory, and not a name on the hub either"):
        load_tokenizer(tmp_path / "nothing")
