"""No text is encoded to the id of a special token, by any type of tokenizer."""

import io
import json
import shutil

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from distill.data.tokenizer import encode_texts, find_special_tokens, load_tokenizer, train_tokenizer
from distill.errors import UserError
from tests.conftest import ROOT

SENTINELS = [f"<extra_id_{k}>" for k in range(100)]
SPECIAL = ["<pad>", "</s>", "<unk>", *SENTINELS]
# Texts that spell special tokens: fully, partly, after normalization, and with the internal names of encode_texts.
TRAPS = [*SPECIAL[:6], "<extra_id_99>", "<extra_id_", ">", "＜pad＞", "\ufdd0</s>", "\ufdd0<extra_id_0>", "\ufdd0"]
MIXED = st.lists(st.sampled_from(TRAPS) | st.text(max_size=8) | st.sampled_from([" ", "a", "\n"]), max_size=12).map(
    "".join
)


def sentencepiece_model(directory, kind: str) -> None:
    """A spiece.model as in T5's repositories: pad 0, eos 1, unk 2, and no sentinels."""
    lines = [*(ROOT / "LICENSE").read_text().splitlines(), "x < y / z > s </a>"]
    model = io.BytesIO()
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=400,
        model_type=kind,
        character_coverage=1.0,
        minloglevel=2,
        **ids,
    )
    (directory / "spiece.model").write_bytes(model.getvalue())


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """A BPE with merges that spell special tokens, as after training on text with many of them."""
    letters = sorted(set("".join(SPECIAL)) | set("abc "))
    vocabulary, merges = {word: n for n, word in enumerate(["<pad>", "</s>", "<unk>", *letters])}, []
    for word in ("<pad>", "</s>", "<extra_id_0>"):
        for length in range(2, len(word) + 1):
            vocabulary.setdefault(word[:length], len(vocabulary))
            if (word[: length - 1], word[length - 1]) not in merges:
                merges.append((word[: length - 1], word[length - 1]))
    for word in reversed(SENTINELS):
        vocabulary.pop(word, None)
    vocabulary = {word: n for n, word in enumerate([*vocabulary, *reversed(SENTINELS)])}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    backend.add_tokens([AddedToken(word, special=False) for word in SENTINELS])
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module", params=["byte-level", "merging", "unigram", "unigram-json", "bpe", "bpe-json"])
def tokenizer(request, tmp_path_factory):
    if request.param == "byte-level":
        return train_tokenizer([(ROOT / "LICENSE").read_text(), "<pad> </s> <extra_id_0>" * 1000], 500)
    if request.param == "merging":
        return merging_tokenizer()
    directory = tmp_path_factory.mktemp(request.param)
    sentencepiece_model(directory, request.param.removesuffix("-json"))
    if request.param == "bpe":
        (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer"}))
    loaded = load_tokenizer(directory)
    if not request.param.endswith("-json"):
        return loaded
    saved = tmp_path_factory.mktemp("saved")
    loaded.save_pretrained(saved)
    return load_tokenizer(saved)


def special_ids(tokenizer) -> set[int]:
    special = find_special_tokens(tokenizer)
    return {
        special.pad,
        special.eos,
        *range(special.sentinel_start - special.sentinels + 1, special.sentinel_start + 1),
    }


@settings(max_examples=300, deadline=None, derandomize=True)
@given(text=MIXED)
def test_no_text_gives_a_special_id(tokenizer, text):
    assert special_ids(tokenizer).isdisjoint(encode_texts(tokenizer, [text])[0])


def test_the_tokenizer_itself_would_give_special_ids(tokenizer):
    """Otherwise the test above could not fail."""
    ids = tokenizer.backend_tokenizer.encode("a <extra_id_0> b </s> <pad> c", add_special_tokens=False).ids
    assert len(special_ids(tokenizer) & set(ids)) == 3


@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=st.text(max_size=40).filter(lambda text: "<" not in text and "＜" not in text and "﹤" not in text))
def test_any_other_text_is_cut_as_the_tokenizer_cuts_it(tokenizer, text):
    assert encode_texts(tokenizer, [text])[0] == tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


def test_a_special_word_is_cut_into_pieces_and_not_dropped(tokenizer):
    ids = encode_texts(tokenizer, ["x </s>"])[0]
    assert tokenizer.backend_tokenizer.decode(ids).replace(" ", "") == "x</s>"


def test_a_directory_with_spiece_model_alone_is_read_as_sentencepiece_reads_it(tmp_path):
    sentencepiece_model(tmp_path, "unigram")
    loaded = load_tokenizer(tmp_path)
    special = find_special_tokens(loaded)
    assert (special.vocabulary_size, special.pad, special.eos, special.sentinel_start, special.sentinels) == (
        500,
        0,
        1,
        499,
        100,
    )
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    for text in (ROOT / "LICENSE").read_text().splitlines():
        assert encode_texts(loaded, [text])[0] == theirs.encode(text)


def test_a_damaged_spiece_model_is_named(tmp_path):
    sentencepiece_model(tmp_path, "unigram")
    whole = (tmp_path / "spiece.model").read_bytes()
    (tmp_path / "spiece.model").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=f"tokenizer '{tmp_path}' cannot be loaded"):
        load_tokenizer(tmp_path)
    shutil.rmtree(tmp_path)
