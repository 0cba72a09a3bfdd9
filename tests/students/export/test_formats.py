"""Answers and scores of every format's runtime in batches, against transformers on one example at a time."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from distill.data.examples import Examples
from distill.errors import UserError
from distill.models.build import build_dense
from students.export import FORMATS, check_format, write_export
from students.export.student import MAX_NEW_TOKENS, load_student
from students.runtime import Decoding
from tests.processor import multiplies_int8

ROOT = Path(__file__).parents[3]


# An export to onnx takes half a minute, so that of other students than the usual one is slow.
OTHER_STUDENTS = [pytest.param(name, marks=pytest.mark.slow) if name == "onnx" else name for name in FORMATS]


@pytest.fixture(scope="module")
def ragged(data, data_config):
    """Inputs and targets of many lengths. The shortest input is one token and </s>."""
    batch = Examples(data, data_config, seed=None).batch(range(12))
    inputs = [row[-2 - 3 * number :].tolist() for number, row in enumerate(batch.input_ids)]
    targets = [row[: 1 + number % 8].tolist() for number, row in enumerate(batch.labels)]
    return inputs, targets


def generated(plain, row, most):
    ids = plain.generate(torch.tensor([row]), max_new_tokens=most, do_sample=False, num_beams=1)[0, 1:].tolist()
    return ids


def scored(plain, row, target):
    logits = plain(input_ids=torch.tensor([row]), labels=torch.tensor([target])).logits[0].detach().double()
    return logits.log_softmax(-1)[range(len(target)), target].numpy()


def test_answers_and_log_probabilities_match_transformers(exported, format, ragged):
    inputs, targets = ragged
    runner = exported.runner(format)
    limits = [1 + number % 5 * 6 for number in range(len(inputs))]
    assert runner.format == format and runner.compute_type == "float32"
    assert runner.generate(inputs, limits) == [
        generated(exported.plain, *pair) for pair in zip(inputs, limits, strict=True)
    ]
    for row, target, scores in zip(inputs, targets, runner.score(inputs, targets), strict=True):
        np.testing.assert_allclose(scores, scored(exported.plain, row, target), atol=1e-4)


@pytest.mark.parametrize("format", OTHER_STUDENTS)
def test_a_gated_student_with_an_untied_head_keeps_the_scale_of_its_output(gated_exported, format, ragged):
    inputs, targets = ragged
    runner = gated_exported.runner(format)
    assert not gated_exported.plain.config.scale_decoder_outputs
    for row, target, scores in zip(inputs, targets, runner.score(inputs, targets), strict=True):
        expected = scored(gated_exported.plain, row, target)
        np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert runner.generate(inputs[:3], [8, 8, 8]) == [generated(gated_exported.plain, row, 8) for row in inputs[:3]]


@pytest.mark.parametrize("format", OTHER_STUDENTS)
def test_a_student_of_another_size_than_its_teacher(resized_exported, format, ragged):
    """One decoder layer and two of the encoder, and FFNs that are wider than the teacher's."""
    inputs, targets = ragged
    assert (resized_exported.plain.config.num_decoder_layers, resized_exported.plain.config.d_ff) == (1, 80)
    runner = resized_exported.runner(format)
    for row, target, scores in zip(inputs, targets, runner.score(inputs, targets), strict=True):
        np.testing.assert_allclose(scores, scored(resized_exported.plain, row, target), atol=1e-4)
    assert runner.generate(inputs[:3], [8, 8, 8]) == [generated(resized_exported.plain, row, 8) for row in inputs[:3]]


def test_no_answer_ends_before_min_tokens(exported, format, ragged):
    """The answers equal those of transformers with the same ``min_new_tokens``."""
    inputs, eos = ragged[0], exported.plain.config.eos_token_id
    bound = {"min_new_tokens": 12, "max_new_tokens": 16, "do_sample": False, "num_beams": 1}
    answers = exported.runner(format).generate(inputs, [16] * len(inputs), Decoding(min_tokens=12))
    assert answers == [exported.plain.generate(torch.tensor([row]), **bound)[0, 1:].tolist() for row in inputs]
    assert all(len(answer) >= 12 and eos not in answer[:12] for answer in answers)


def test_answers_have_eos_only_at_their_end(exported, format, ragged):
    answers = exported.runner(format).generate(ragged[0], [40] * len(ragged[0]))
    eos = exported.plain.config.eos_token_id
    assert any(row[-1] == eos for row in answers)
    assert all(eos not in row[:-1] and 1 <= len(row) <= 40 for row in answers)


@pytest.mark.parametrize("decoding", [Decoding(), Decoding(min_tokens=9), Decoding(temperature=1.5, seed=3)])
def test_on_token_receives_each_token_as_it_is_generated(exported, format, ragged, decoding):
    inputs, received = ragged[0], []
    limits = [10 + number % 5 for number in range(len(inputs))]
    repeats = format != "ctranslate2" or not decoding.temperature
    decoding = decoding if repeats else decoding._replace(seed=None)
    answers = exported.runner(format).generate(inputs, limits, decoding, lambda row, id_: received.append((row, id_)))
    assert not repeats or answers == exported.runner(format).generate(inputs, limits, decoding)
    assert [[id_ for at, id_ in received if at == row] for row in range(len(inputs))] == answers
    steps = [sum(at == row for at, _ in received[:number]) for number, (row, _) in enumerate(received)]
    assert steps == sorted(steps)  # the answers grow together, and no answer is sent at once


def test_on_token_ends_an_answer_without_changing_others(exported, format, ragged):
    inputs, lengths = ragged[0], [0] * len(ragged[0])
    limits = [12] * len(inputs)
    whole = exported.runner(format).generate(inputs, limits, Decoding(min_tokens=12))

    def stop(row: int, id_: int) -> bool:
        lengths[row] += 1
        return row % 3 == 1 and lengths[row] == 1 + row // 3

    answers = exported.runner(format).generate(inputs, limits, Decoding(min_tokens=12), stop)
    expected = [row[: 1 + number // 3] if number % 3 == 1 else row for number, row in enumerate(whole)]
    assert answers == expected and lengths == list(map(len, expected))


def test_a_process_exits_cleanly_after_callbacks(exported):
    directory = exported.directory("ctranslate2")
    script = """
import sys
from students.runtime import Decoding, load_runner
runner = load_runner(sys.argv[1], threads=1)
inputs = [runner.tokenizer.encode("the <extra_id_0> License").ids] * 8
for _ in range(5):
    runner.generate(inputs, [64] * 8, Decoding(min_tokens=64), lambda row, id_: False)
"""
    done = subprocess.run([sys.executable, "-c", script, str(directory)], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def products(directory):
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    nodes = onnx.load(directory / "decoder.onnx", load_external_data=False).graph.node
    return [node.op_type for node in nodes].count("MatMulInteger")


@pytest.mark.slow  # the export takes half a minute
def test_int8_in_onnx_quantises_the_head_too(exported, ragged):
    scores = exported.runner("onnx", "int8").score(*ragged)
    # A layer has 8: query, key, value and output, cross query and output, and two of the FFN.
    assert products(exported.directory("onnx", "int8")) == 8 * 2 + 1
    expected = [scored(exported.plain, *pair) for pair in zip(*ragged, strict=True)]
    assert 1e-4 < np.abs(np.concatenate(scores) - np.concatenate(expected)).mean() < 0.05


@pytest.mark.slow
def test_int8_in_onnx_can_leave_out_the_head(exported, tmp_path):
    plain = exported.directory("onnx")
    from students.export.onnx_graphs import quantise

    quantise(plain / "decoder.onnx", tmp_path / "decoder.onnx")  # its head is tied
    assert products(tmp_path) == 8 * 2


@pytest.mark.slow
def test_int8_in_onnx_can_leave_out_a_head_of_its_own(gated_exported):
    """Its one layer has a third product of the FFN."""
    assert products(gated_exported.directory("onnx", "int8-except-head")) == 9


def test_the_product_of_the_logits_is_not_quantised(tmp_path):
    """A decoder of one layer and a head of its own, whose logits are reshaped."""
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    from students.export.onnx_graphs import quantise

    make, rng = onnx.helper, np.random.default_rng(0)
    weights = [onnx.numpy_helper.from_array(rng.normal(size=(8, 8)).astype("f"), name) for name in ("layer", "lm_head")]
    weights.append(onnx.numpy_helper.from_array(np.array([-1, 8]), "shape"))
    nodes = [make.make_node("MatMul", ["x", "layer"], ["hidden"], "node_1")]
    nodes += [make.make_node("MatMul", ["hidden", "lm_head"], ["scores"], "node_2")]
    nodes += [make.make_node("Reshape", ["scores", "shape"], ["logits"], "node_3")]
    ends = [make.make_tensor_value_info(name, 1, ["batch", *rest, 8]) for name, rest in (("x", [1]), ("logits", []))]
    graph = make.make_graph(nodes, "decoder", ends[:1], ends[1:], weights)
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 20)], ir_version=10), tmp_path / "plain.onnx")
    for head, number in ((True, 2), (False, 1)):
        (tmp_path / str(head)).mkdir()
        quantise(tmp_path / "plain.onnx", tmp_path / str(head) / "decoder.onnx", head=head)
        assert products(tmp_path / str(head)) == number


@pytest.mark.skipif(not multiplies_int8(), reason="without VNNI, the differences exceed what is allowed")
def test_int8_in_ctranslate2(exported, ragged):
    runner = exported.runner("ctranslate2", "int8")
    assert runner.compute_type.startswith("int8")
    expected = [scored(exported.plain, *pair) for pair in zip(*ragged, strict=True)]
    assert 1e-4 < np.abs(np.concatenate(runner.score(*ragged)) - np.concatenate(expected)).mean() < 0.05


def test_a_sample_follows_the_distribution_and_a_seed_repeats_it(exported, format, ragged):
    runner, rows, temperature = exported.runner(format), 1500, 2.0
    inputs, most = [ragged[0][5]] * rows, [1] * rows
    logits = exported.plain(input_ids=torch.tensor(inputs[:1]), decoder_input_ids=torch.tensor([[0]])).logits[0, 0]
    expected = (logits / temperature).softmax(-1).detach().numpy()
    if format == "ctranslate2":
        with pytest.raises(UserError, match="cannot repeat a sample; leave out the seed"):
            runner.generate(inputs[:2], most[:2], Decoding(temperature=temperature, seed=1))
        answers = runner.generate(inputs, most, Decoding(temperature=temperature))
    else:
        answers = runner.generate(inputs, most, Decoding(temperature=temperature, seed=1))
        assert answers == runner.generate(inputs, most, Decoding(temperature=temperature, seed=1))
        assert answers != runner.generate(inputs, most, Decoding(temperature=temperature, seed=2))
    found = np.bincount([id_ for row in answers for id_ in row], minlength=len(expected)) / rows
    error = np.sqrt(expected * (1 - expected) / rows)
    assert (np.abs(found - expected) < 5 * error + 2 / rows).all()
    assert (found > 0).sum() > 20  # samples come from the whole vocabulary


def test_an_empty_text_is_answered_or_refused(exported, format):
    eos = exported.plain.config.eos_token_id
    if format == "ctranslate2":  # CTranslate2 would skip the text without an error
        with pytest.raises(UserError, match="gives no answer to an empty text"):
            exported.runner(format).generate([[5, eos], [eos]], [4, 4])
    else:
        expected = [generated(exported.plain, row, 4) for row in ([5, eos], [eos])]
        assert exported.runner(format).generate([[5, eos], [eos]], [4, 4]) == expected


def test_an_hf_export_has_the_same_weights_and_an_answer_length(exported, student):
    directory = exported.directory("hf")
    before, after = load_file(student / "model.safetensors"), load_file(directory / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    again = load_student(directory)
    assert again.generation_config.max_new_tokens == MAX_NEW_TOKENS and again.config.scale_decoder_outputs
    texts = ["import <extra_id_0> sys", "x"]
    tokenizers = [AutoTokenizer.from_pretrained(path) for path in (student, directory)]
    assert tokenizers[0](texts).input_ids == tokenizers[1](texts).input_ids


def test_an_mlflow_export_answers_on_the_mlflow_scoring_server(exported):
    import mlflow
    from mlflow.pyfunc.scoring_server import init
    from starlette.testclient import TestClient

    directory = exported.directory("mlflow")
    assert str(exported.root.parent) not in (directory / "MLmodel").read_text()
    tokenizer, texts = exported.runner("hf").tokenizer, ["the <extra_id_0> License", "x"]
    client = TestClient(init(mlflow.pyfunc.load_model(str(directory))))
    answer = client.post("/invocations", json={"inputs": texts, "params": {"max_tokens": 6}})
    expected = [generated(exported.plain, tokenizer.encode(text).ids, 6) for text in texts]
    kept = [[id_ for id_ in row if id_ not in (0, 1)] for row in expected]
    assert answer.json()["predictions"] == [tokenizer.decode(row, skip_special_tokens=False) for row in kept]


def test_unused_tokens_of_a_ctranslate2_vocabulary_have_names_of_their_own(data, shape, tmp_path):
    pytest.importorskip("ctranslate2", reason="the extra ctranslate2 is not installed")
    unused = 40
    t5 = build_dense(
        shape,
        data.special_tokens.vocabulary_size + unused,
        pad=data.special_tokens.pad,
        eos=data.special_tokens.eos,
        seed=0,
    )
    t5.save_pretrained(tmp_path)
    data.tokenizer.save_pretrained(tmp_path)
    write_export(tmp_path, tmp_path / "made", "ctranslate2", "float32")
    tokens = json.loads((tmp_path / "made" / "shared_vocabulary.json").read_text())
    assert len(tokens) == len(set(tokens)) == data.special_tokens.vocabulary_size + unused
    assert tokens[: data.special_tokens.vocabulary_size] == data.tokenizer.convert_ids_to_tokens(
        range(data.special_tokens.vocabulary_size)
    )


def test_a_wrong_format_or_model_is_refused(student, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="--format is 'gguf'; use hf, onnx, ctranslate2, mlflow"):
        check_format("gguf", "float32")
    with pytest.raises(UserError, match="--precision is 'int8', but hf has float32"):
        check_format("hf", "int8")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(UserError, match=r'needs onnxscript; install it with: pip install "switch-distill\[onnx\]"'):
        check_format("onnx", "float32")
    with pytest.raises(UserError, match="has no tokenizer.json; save the tokenizer there"):
        write_export(tmp_path, tmp_path, "hf", "float32")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be loaded: it has no config.json"):
        write_export(tmp_path, tmp_path, "hf", "float32")
    (tmp_path / "config.json").write_text('{"model_type": "switch_transformers"}')
    with pytest.raises(UserError, match="is a switch_transformers model; a dense T5 is needed"):
        write_export(tmp_path, tmp_path, "hf", "float32")
    (tmp_path / "config.json").write_text((student / "config.json").read_text())
    with pytest.raises(UserError, match="it has neither model.safetensors nor pytorch_model.bin; save it there"):
        write_export(tmp_path, tmp_path, "hf", "float32")
