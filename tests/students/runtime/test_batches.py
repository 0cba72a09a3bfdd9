import json

import numpy as np
import pytest

from distill.errors import UserError
from students import runtime
from students.runtime import decode, encode, load_runner
from students.runtime.batches import Answers, log_softmax, pad


def test_ragged_rows_are_filled_and_masked():
    ids, mask = pad([[5, 6, 7], [8]], 0)
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]] and mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert ids.dtype == mask.dtype == np.int64


def test_answers_end_with_their_end_token_at_their_length_or_where_they_are_told_to():
    told = []
    answers = Answers([10, 2, 10, 1], 1, lambda row, id_: told.append((row, id_)) or (row, id_) == (2, 5))
    for ids in ([4, 4, 4, 1], [5, 5, 5, 0], [1, 9, 9, 0], [0, 9, 9, 0]):
        answers.add_step(ids)
    assert answers.rows == [[4, 5, 1], [4, 5], [4, 5], [1]] and not answers.open.any()
    assert [[id_ for at, id_ in told if at == row] for row in range(4)] == answers.rows


def test_an_answer_that_goes_on_says_so():
    answers = Answers([2], 1)
    assert answers.add(0, 4) and answers.open.all()
    assert not answers.add(0, 5) and not answers.add(0, 6)
    assert answers.rows == [[4, 5]]


def test_log_softmax_survives_large_logits():
    logits = np.array([[1000.0, 999.0, -1000.0]], dtype=np.float32)
    expected = -np.log(1 + np.exp(-1.0))
    np.testing.assert_allclose(log_softmax(logits)[0, :2], [expected, expected - 1])


def test_text_keeps_its_sentinels_and_loses_padding_and_end(data):
    tokenizer = data.tokenizer.backend_tokenizer
    tokenizer.encode_special_tokens = False
    ids = encode(tokenizer, "the <extra_id_0> Licence\n")
    assert ids[-1] == data.words.eos and data.words.sentinel_start in ids
    assert decode(tokenizer, [*ids, 0, 0]) == "the <extra_id_0> Licence\n"


def test_what_is_no_export_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"is not an export \(it has no manifest.json\); make one with"):
        load_runner(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "gguf"}))
    with pytest.raises(UserError, match="is a 'gguf' export, which is not known here"):
        load_runner(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "onnx"}))
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'needs onnxruntime; install it with: pip install "switch-distill\[onnx\]"'):
        load_runner(tmp_path)


def test_a_damaged_manifest_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text('{"format": ')
    with pytest.raises(UserError, match=r"manifest.json is damaged: .*, or export the model again"):
        load_runner(tmp_path)
