import json

import numpy as np
import pytest

from distill.errors import UserError
from students import runtime
from students.runtime import decode, encode, load_runner
from students.runtime.batches import Answers, log_softmax, pad


def test_rows_of_different_lengths_are_padded_and_masked():
    ids, mask = pad([[5, 6, 7], [8]], 0)
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]] and mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert ids.dtype == mask.dtype == np.int64


def test_an_answer_ends_at_eos_at_max_tokens_or_when_on_token_returns_true():
    received = []
    answers = Answers([10, 2, 10, 1], 1, lambda row, id_: received.append((row, id_)) or (row, id_) == (2, 5))
    for ids in ([4, 4, 4, 1], [5, 5, 5, 0], [1, 9, 9, 0], [0, 9, 9, 0]):
        answers.add_step(ids)
    assert answers.rows == [[4, 5, 1], [4, 5], [4, 5], [1]] and not answers.unfinished.any()
    assert [[id_ for at, id_ in received if at == row] for row in range(4)] == answers.rows


def test_add_returns_whether_the_answer_continues():
    answers = Answers([2], 1)
    assert answers.add(0, 4) and answers.unfinished.all()
    assert not answers.add(0, 5) and not answers.add(0, 6)
    assert answers.rows == [[4, 5]]


def test_log_softmax_of_large_logits_is_finite():
    logits = np.array([[1000.0, 999.0, -1000.0]], dtype=np.float32)
    expected = -np.log(1 + np.exp(-1.0))
    np.testing.assert_allclose(log_softmax(logits)[0, :2], [expected, expected - 1])


def test_decoded_text_has_sentinels_but_no_padding_and_no_eos(data):
    tokenizer = data.tokenizer.backend_tokenizer
    tokenizer.encode_special_tokens = False
    ids = encode(tokenizer, "the <extra_id_0> Licence\n")
    assert ids[-1] == data.special_tokens.eos and data.special_tokens.sentinel_start in ids
    assert decode(tokenizer, [*ids, 0, 0]) == "the <extra_id_0> Licence\n"


def test_a_directory_that_is_not_an_export_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"is not an export \(it has no manifest.json\); make one with"):
        load_runner(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "gguf"}))
    with pytest.raises(UserError, match="is an export of the unknown format 'gguf'"):
        load_runner(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "onnx"}))
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'needs onnxruntime; install it with: pip install "switch-distill\[onnx\]"'):
        load_runner(tmp_path)


def test_a_damaged_manifest_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text('{"format": ')
    with pytest.raises(UserError, match=r"manifest.json is damaged: .*, or export the model again"):
        load_runner(tmp_path)
