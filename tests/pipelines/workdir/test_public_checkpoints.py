"""Checks of checkpoints like the public ones, whose embeddings have more rows than their tokenizer has tokens."""

import warnings

import pytest
import yaml

from distill.errors import UserError
from pipelines.config.run_config import load_config
from pipelines.workdir.loaded_models import check_models
from tests.distill.data.test_special_tokens import sentencepiece_model
from tests.public_checkpoints import plain_model, plain_state, write_checkpoint


@pytest.fixture
def config_of(tmp_path):
    """A config with a teacher of ``rows`` rows and with its SentencePiece model, which has 500 tokens."""

    def make(rows: int, **changes):
        sizes = {"vocab_size": rows}
        write_checkpoint(tmp_path / "teacher", plain_state(plain_model(**sizes)), "bin", 2, **{**sizes, **changes})
        sentencepiece_model(tmp_path / "teacher", "unigram")
        source = str(tmp_path / "teacher")
        values = {"data": {"tokenizer": source}, "teacher": {"checkpoints": {"e4": source}}}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
        return load_config(str(tmp_path / "config.yaml"))

    return make


@pytest.mark.parametrize("rows", [500, 501, 512, 640])
def test_rows_without_a_token_are_fine_and_nothing_is_said_of_them(config_of, rows):
    said = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        [teacher] = check_models(config_of(rows), say=said.append)
    assert said == [] and teacher.header.vocab_size == rows and len(teacher.vocabulary) == 500


def test_tokens_without_a_row_are_refused(config_of):
    with pytest.raises(
        UserError, match="has a vocabulary of 499 tokens, but the tokenizer has 500; set data.tokenizer"
    ):
        check_models(config_of(499))


def test_each_contradiction_of_config_and_tensors_is_said(config_of):
    said = []
    [teacher] = check_models(config_of(512, num_decoder_layers=3, num_experts=8), say=said.append)
    assert teacher.header.experts == 4 and teacher.header.shape["num_decoder_layers"] == 4
    assert [sentence.partition(": ")[2] for sentence in said] == [
        "its config.json has num_decoder_layers 3, but its tensors have 4; the tensors are used",
        "its config.json has num_experts 8, but its tensors have 4; the tensors are used",
    ]
