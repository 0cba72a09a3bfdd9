import json

import pytest

from distill.config import DataConfig
from distill.data.prepare import prepare_data
from distill.data.round_trip import RoundTripCounter
from distill.data.tokenizer import encode_texts, load_tokenizer, train_tokenizer
from distill.errors import UserError
from tests.conftest import ROOT
from tests.distill.data.test_special_tokens import sentencepiece_model


def test_a_byte_level_tokenizer_loses_nothing():
    tokenizer = train_tokenizer([(ROOT / "LICENSE").read_text()], 450)
    counter = RoundTripCounter(tokenizer)
    for text in ("a {b}\n\tc", "  世界 ü </s>"):
        counter.count(ids := encode_texts(tokenizer, [text])[0])
        counter.sample(text, ids)
    assert counter.result() == (0.0, 1.0, 0.0, [], 2)


def test_what_sentencepiece_loses_is_counted(tmp_path):
    sentencepiece_model(tmp_path, "unigram")
    tokenizer = load_tokenizer(tmp_path)
    counter = RoundTripCounter(tokenizer)
    for text in ("the License", "a {\n{ b", "of the\nWork"):
        counter.count(ids := encode_texts(tokenizer, [text])[0])
        counter.sample(text, ids)
    found = counter.result()
    # By hand: one text of three is restored. The two {, their line break, and that of the last text are lost. A space
    # replaces the second line break, and another one is between the braces.
    assert found.restored_share == pytest.approx(1 / 3) and found.sampled == 3
    assert found.most_lost[:2] == ["{", "\n"] and found.lost_share == pytest.approx(4 / 29)
    assert 0 < found.unknown_share < 0.5 and 2 in encode_texts(tokenizer, ["a { b"])[0] and 2 not in ids
    assert "loses 13.8% of their characters, most often '{', line breaks" in found.summary


@pytest.fixture
def corpus(tmp_path) -> str:
    words = (ROOT / "LICENSE").read_text().split()
    rows = [{"text": f"{number}\n" + " ".join(words[number : number + 20])} for number in range(400)]
    (tmp_path / "rows").mkdir()
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "rows" / "a.jsonl").write_text("\n".join([*lines[:10], '{"text": null}', "{", *lines[10:]]))
    return f"jsonl:{tmp_path}/rows/a.jsonl"


def test_preparation_says_what_is_lost_and_keeps_it(tmp_path, corpus):
    sentencepiece_model(tmp_path, "unigram")
    said = []
    config = DataConfig(corpus=corpus, tokenizer=str(tmp_path), bad_rows="skip", test_fraction=0.2, test_examples=4)
    data = prepare_data(config, tmp_path / "data", said.append)
    assert data.lost["skipped_rows"] == 2 and data.lost["restored_share"] == 0 and 0 < data.lost["lost_share"] < 0.05
    assert any(
        one.startswith("Skipped 2 bad rows of ") and f"; the first: line 11 of {tmp_path}/rows/a.jsonl has null" in one
        for one in said
    )
    assert any("The tokenizer loses text" in one and "line breaks" in one for one in said)
    assert prepare_data(config, tmp_path / "data").round_trip == data.round_trip


def test_a_corpus_without_any_good_row_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": 1}\n' * 5)
    config = DataConfig(corpus=f"jsonl:{tmp_path}/a.jsonl", bad_rows="skip")
    with pytest.raises(
        UserError, match=f"all 5 rows are bad; the first: line 1 of {tmp_path}/a.jsonl has the number 1"
    ):
        prepare_data(config, tmp_path / "data")
    assert not list((tmp_path / "data").glob("*/data.json"))
