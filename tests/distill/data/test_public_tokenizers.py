"""Tokenizers with the files of the public Switch Transformers: a SentencePiece model, to which 100 sentinels belong."""

import json

import pytest
import sentencepiece
from tokenizers import Tokenizer

from distill.data.tokenizer import encode_texts, find_special_tokens, load_tokenizer
from distill.data.vocabulary import read_vocabulary
from tests.conftest import ROOT
from tests.distill.data.test_special_tokens import SENTINELS, sentencepiece_model
from tests.hub import python

PIECES = 400
SPECIAL = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "additional_special_tokens": SENTINELS}
# tokenizer_config.json of google/switch-base-8.
CONFIG = {**SPECIAL, "extra_ids": 100, "model_max_length": 512, "sp_model_kwargs": {}, "tokenizer_class": "T5Tokenizer"}
FILES = {
    "spiece.model": {},
    "with its config": {"tokenizer_config.json": CONFIG, "special_tokens_map.json": SPECIAL},
    "with a config of the model": {"config.json": {"model_type": "switch_transformers"}},
    "all": {
        "tokenizer_config.json": CONFIG,
        "config.json": {"model_type": "switch_transformers"},
        "tokenizer.json": None,
    },
}


def write(directory, files: str) -> None:
    directory.mkdir(exist_ok=True)
    sentencepiece_model(directory, "unigram")
    for name, content in FILES[files].items():
        if content is None:
            load_tokenizer(directory).backend_tokenizer.save(str(directory / name))
        else:
            (directory / name).write_text(json.dumps(content))


@pytest.mark.parametrize("files", FILES)
def test_pieces_are_those_of_sentencepiece_and_sentinels_come_after_them_in_descending_order(tmp_path, files):
    write(tmp_path, files)
    loaded, theirs = load_tokenizer(tmp_path), sentencepiece.SentencePieceProcessor(str(tmp_path / "spiece.model"))
    pieces = {theirs.id_to_piece(number): number for number in range(PIECES)}
    sentinels = {f"<extra_id_{number}>": PIECES + 99 - number for number in range(100)}
    assert loaded.get_vocab() == read_vocabulary(tmp_path, "it") == pieces | sentinels
    special = find_special_tokens(loaded)
    assert special == (PIECES + 100, 0, 1, PIECES + 99, 100)
    for text in (ROOT / "LICENSE").read_text().splitlines():
        assert encode_texts(loaded, [text])[0] == theirs.encode(text)
    assert loaded("of <extra_id_1> the").input_ids == [*theirs.encode("of"), PIECES + 98, *theirs.encode("the"), 1]


_READ = """
import sys
from distill.data.tokenizer import load_tokenizer
load_tokenizer(sys.argv[1]).backend_tokenizer.save(sys.argv[2])
"""


@pytest.mark.parametrize("files", ["spiece.model", "with its config"])
def test_a_tokenizer_without_tokenizer_json_is_loaded_from_the_hub(hub, tmp_path, files):
    write(tmp_path / "model", files)
    hub.model("some/switch").commit(tmp_path / "model")
    python(_READ, "some/switch", str(tmp_path / "out"), **hub.environment)
    found = Tokenizer.from_file(str(tmp_path / "out"))
    assert found.get_vocab() == load_tokenizer(tmp_path / "model").get_vocab()
