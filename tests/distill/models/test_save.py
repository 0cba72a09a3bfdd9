"""Saved T5 models and tokenizers have transformers 4's names and values, and transformers 5 reads them equally."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, T5ForConditionalGeneration, T5Tokenizer

from distill.data.tokenizer import find_special_tokens, load_tokenizer, train_tokenizer
from distill.errors import UserError
from distill.models.build import build_dense
from distill.models.save import correct_tokenizer_config, save_t5, save_tokenizer

SENTINELS = [f"<extra_id_{k}>" for k in range(100)]


def untied(shape):
    return build_dense(shape.model_copy(update={"tie_word_embeddings": False}), 64, pad=0, eos=1, seed=0)


def said(directory):
    return json.loads((directory / "config.json").read_text())["tie_word_embeddings"]


@pytest.mark.parametrize("tied", [True, False])
def test_a_t5_says_whether_it_is_tied_each_time_it_is_saved(shape, tmp_path, tied):
    shape = shape.model_copy(update={"tie_word_embeddings": tied})
    t5 = build_dense(shape, 64, pad=0, eos=1, seed=0)
    t5.save_pretrained(tmp_path / "by-transformers")
    assert said(tmp_path / "by-transformers") is tied
    save_t5(t5, tmp_path / "first")
    read = T5ForConditionalGeneration.from_pretrained(tmp_path / "first")
    assert read.config.scale_decoder_outputs is tied and read.config.tie_word_embeddings  # as transformers 5 sets it
    save_t5(read, tmp_path / "second")
    assert said(tmp_path / "first") is said(tmp_path / "second") is tied
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert ("lm_head.weight" in first) is not tied and "shared.weight" in first
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(first.get("lm_head.weight", first["shared.weight"]), t5.lm_head.weight)


def test_an_untied_head_that_is_the_embedding_is_written_all_the_same(shape, tmp_path):
    t5 = untied(shape)
    t5.lm_head.weight = t5.shared.weight
    save_t5(t5, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert said(tmp_path) is False and torch.equal(weights["lm_head.weight"], weights["shared.weight"])


def check_names(directory, kind):
    config = json.loads((directory / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == kind
    assert config["additional_special_tokens"] == SENTINELS and "extra_special_tokens" not in config
    assert config["model_input_names"] == ["input_ids", "attention_mask"]


def test_a_trained_tokenizer_has_names_that_transformers_4_knows(tmp_path):
    tokenizer = train_tokenizer(["a word and another word"] * 50, 400)
    save_tokenizer(tokenizer, tmp_path)
    check_names(tmp_path, "PreTrainedTokenizerFast")
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert read.all_special_tokens == tokenizer.all_special_tokens and read.model_max_length == 10**6
    assert read(["another <extra_id_0> word"]) == tokenizer(["another <extra_id_0> word"])
    assert find_special_tokens(load_tokenizer(tmp_path)) == find_special_tokens(tokenizer)
    save_tokenizer(read, tmp_path / "again")
    check_names(tmp_path / "again", "PreTrainedTokenizerFast")


def test_t5s_own_tokenizer_keeps_its_class(tmp_path):
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁the", -1.0), ("a", -3.0)]
    tokenizer = T5Tokenizer(vocab=[*pieces, *((word, 0.0) for word in reversed(SENTINELS))], extra_ids=100)
    save_tokenizer(tokenizer, tmp_path)
    check_names(tmp_path, "T5Tokenizer")
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert type(read) is T5Tokenizer and read(["the a<extra_id_1>"]) == tokenizer(["the a<extra_id_1>"])
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("the a").ids == [4, 3, 5, 1]


def test_a_config_of_transformers_4_stays_what_it_is(tmp_path):
    path = tmp_path / "tokenizer_config.json"
    values = {"tokenizer_class": "T5TokenizerFast", "additional_special_tokens": ["<extra_id_0>"]}
    values |= {"extra_special_tokens": {"image": "<image>"}, "model_input_names": ["input_ids"]}
    path.write_text(json.dumps(values))
    correct_tokenizer_config(path)
    assert json.loads(path.read_text()) == values


@pytest.mark.parametrize("text,message", [("[", "is damaged: it is not JSON"), ("[]", "is not a JSON object")])
def test_a_damaged_config_of_a_tokenizer_is_named(tmp_path, text, message):
    path = tmp_path / "tokenizer_config.json"
    path.write_text(text)
    with pytest.raises(UserError, match=f"{message}; save the tokenizer again with save_pretrained"):
        correct_tokenizer_config(path)
