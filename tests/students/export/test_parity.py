import math

import numpy as np
import pytest
from tokenizers import Tokenizer

from students.export.parity import ParityFailure, Reference, compare, run_export, student_reference, tolerance_of
from students.export.parity_examples import make_examples
from students.export.student import load_student


@pytest.fixture(scope="module")
def examples(data, student):
    tokenizer = Tokenizer.from_file(str(student / "tokenizer.json"))
    return make_examples(data.tokens("test"), data.special_tokens, tokenizer)


@pytest.fixture(scope="module")
def reference(student, examples):
    return student_reference(student, examples)


def reply(**changes):
    """A reference of two answers, and the reply of an export that equals it except for ``changes``."""
    reference = Reference(
        [[-1.0, -2.0], [-3.0]], [[5, 6, 1], [7, 8]], [[-0.1, -0.2, -0.3], [-0.4, -0.5]], [[1.0, 0.05, 2.0], [0.5, 0.6]]
    )
    same = {name: getattr(reference, name) for name in ("target_scores", "answers", "answer_scores")}
    return reference, {**same, **changes}


def test_equal_answers_and_scores_have_no_difference():
    parity = compare(*reply())
    assert parity.tokens == 3 and parity.greedy_agreement == 1 and parity.greedy_gap == 0
    assert not parity.failures(tolerance_of("float32"))


def test_quality_uses_target_tokens_and_log_probabilities_use_answer_tokens():
    parity = compare(*reply(target_scores=[[-1.0, -2.3], [-3.0]], answer_scores=[[-0.1, -0.2, -0.5], [-0.4, -0.5]]))
    assert parity.quality_difference == pytest.approx(-0.1)
    assert parity.log_probability_difference_mean == pytest.approx(0.2 / 5)
    assert parity.log_probability_difference_max == pytest.approx(0.2)
    assert parity.failures(tolerance_of("int8")) == [
        "mean difference of log-probabilities 0.04 nats (allowed 0.02)",
        "largest difference of log-probabilities 0.2 nats (allowed 0.15)",
        "difference of quality 0.1 nats (allowed 0.01)",
    ]


def test_another_token_is_allowed_only_if_the_two_best_are_close():
    near = compare(*reply(answers=[[5, 9, 9], [7, 8]]))
    assert near.greedy_agreement == 0.5 and near.greedy_gap == 0.05
    assert not near.failures(tolerance_of("int8"))
    assert near.failures(tolerance_of("float32")) == ["gap at a different greedy token 0.05 nats (allowed 0.0002)"]
    far = compare(*reply(answers=[[5, 9, 9], [7, 9]]))
    assert far.greedy_gap == 0.6 and far.failures(tolerance_of("int8"))


@pytest.mark.parametrize("answers", [[[5, 6], [7, 8]], [[5, 6, 1, 1], [7, 8]]])
def test_a_truncated_or_longer_answer_is_never_allowed(answers):
    assert compare(*reply(answers=answers)).greedy_gap == math.inf


@pytest.mark.parametrize("field", ["target_scores", "answer_scores"])
def test_a_score_that_is_nan_fails(field):
    reference, export_reply = reply()
    rows = [list(row) for row in export_reply[field]]
    rows[0][0] = math.nan
    assert compare(reference, {**export_reply, field: rows}).failures(tolerance_of("int8"))


def test_the_gaps_are_between_the_students_two_best_tokens(examples, reference, student):
    import torch
    from transformers import T5ForConditionalGeneration

    plain = T5ForConditionalGeneration.from_pretrained(student)
    for number in (0, 9, 40):
        out = plain.generate(
            torch.tensor([examples.inputs[number]]),
            max_new_tokens=examples.max_tokens[number],
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        assert out.sequences[0, 1:].tolist() == reference.answers[number]
        best = torch.cat(out.logits).topk(2).values
        np.testing.assert_allclose(reference.gaps[number], best[:, 0] - best[:, 1], atol=1e-4)
        scores = torch.cat(out.logits).log_softmax(-1).max(-1).values
        np.testing.assert_allclose(reference.answer_scores[number], scores, atol=1e-4)


@pytest.mark.parametrize("precision", ["float32", pytest.param("int8", marks=pytest.mark.slow)])
@pytest.mark.parametrize("format", ["onnx", "ctranslate2"])
def test_a_process_without_torch_answers_within_the_tolerance(exported, examples, reference, format, precision):
    export_reply = run_export(exported.directory(format, precision), examples, reference.answers)
    assert "torch" not in export_reply["versions"] and "transformers" not in export_reply["versions"]
    parity = compare(reference, export_reply)
    assert not parity.failures(tolerance_of(precision)), parity
    if precision == "int8":  # the tolerance of float32 detects int8
        assert parity.failures(tolerance_of("float32"))


def test_a_changed_output_scale_is_detected(exported, examples, reference, tmp_path):
    """A changed scale changes the log-probabilities and not the greedy answers."""
    pytest.importorskip("ctranslate2", reason="the extra ctranslate2 is not installed")
    from students.export.ctranslate2_model import write

    wrong = load_student(exported.source)
    wrong.decoder.final_layer_norm.weight.data *= 1.01
    write(wrong, exported.source, tmp_path, "float32")
    (tmp_path / "manifest.json").write_text('{"format": "ctranslate2", "precision": "float32"}')
    parity = compare(reference, run_export(tmp_path, examples, reference.answers))
    assert parity.greedy_agreement == 1
    assert parity.failures(tolerance_of("float32"))[0].startswith("mean difference of log-probabilities")


def test_an_export_that_cannot_be_loaded_is_an_error_with_its_cause(examples, reference, tmp_path):
    pytest.importorskip("ctranslate2", reason="the extra ctranslate2 is not installed")
    (tmp_path / "manifest.json").write_text('{"format": "ctranslate2", "precision": "float32"}')
    with pytest.raises(ParityFailure, match="cannot be run by its own runtime: .*tokenizer.json|No such file"):
        run_export(tmp_path, examples, reference.answers)
