"""Every public function rejects wrong arguments with a sentence that names the argument."""

from math import inf, nan
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
)

from distill.config import ModelConfig
from distill.evaluation import negative_log_perplexity
from distill.loss import mixed_cross_entropy
from distill.models.build import build_dense
from distill.span_corruption import corrupt_spans, span_lengths
from pipelines.reporting import fraction_kept
from students import init_student
from teachers import load_teacher, save_teacher
from teachers.build import build_teacher
from teachers.config import SwitchConfig
from teachers.switch_layer import SwitchLayer

SHAPE = ModelConfig(d_model=16, d_ff=32, d_kv=8, num_heads=2, num_layers=2)
TEACHER = build_teacher(SHAPE, SwitchConfig(), 64, 2, pad=0, eos=1, seed=0)
DENSE = build_dense(SHAPE, 64, pad=0, eos=1, seed=0)
OTHER = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=64))
SIZES = {"vocab_size": 64, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_heads": 2, "num_experts": 2, "num_layers": 2}
# Loaded by plain transformers: its layers are not SwitchLayers.
PLAIN = SwitchTransformersForConditionalGeneration(SwitchTransformersConfig(**SIZES, num_sparse_encoder_layers=1))
INPUTS, LABELS = torch.ones(2, 5, dtype=torch.int64), torch.ones(2, 3, dtype=torch.int64)
ROW, ROWS = np.arange(5, 45), np.tile(np.arange(5, 45), (3, 1))


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


def refused(call, *arguments, **options) -> str:
    with pytest.raises(ValueError) as error:
        call(*arguments, **options)
    return str(error.value)


@pytest.mark.parametrize(
    "name,values",
    [
        ("noise_density", [0, 1, -0.1, 1.5, nan, "0.1", None]),
        ("mean_span_length", [0, -1, 0.5, inf, nan, "3"]),
        ("sentinel_start", [0, 0.5, None]),
        ("eos", [-1, 1.5]),
        ("generator", [None, 3, [], torch.Generator()]),
    ],
)
def test_corrupt_spans(name, values):
    for value in values:
        options = {"generator": generator(), "sentinel_start": 99, "eos": 1, name: value}
        assert refused(corrupt_spans, ROW, **options).startswith(f"{name} is ")


@pytest.mark.parametrize("generators", [2, 4])
def test_corrupt_spans_needs_a_generator_for_each_row(generators):
    """With fewer, the spans of the other rows would be uninitialised memory."""
    given = [generator() for _ in range(generators)]
    assert "one for each row" in refused(corrupt_spans, ROWS, given, sentinel_start=99, eos=1)
    assert "one for each row" in refused(corrupt_spans, ROWS, generator(), sentinel_start=99, eos=1)


@pytest.mark.parametrize("tokens", [ROW.astype(float), ROWS[None], np.array(3), ROW[:1], ROW[:0]])
def test_corrupt_spans_needs_tokens(tokens):
    message = refused(corrupt_spans, tokens, generator(), sentinel_start=99, eos=1)
    assert "they must be integers, [L] or [B, L]" in message or "it must be at least 2 tokens" in message
    assert refused(span_lengths, 1) == "raw_length is 1; it must be at least 2 tokens"


@pytest.mark.parametrize(
    "change,message",
    [
        *(({"temperature": value}, "temperature is ") for value in (0, -1, nan, inf, "1")),
        *(({"hard_fraction": value}, "hard_fraction is ") for value in (-0.1, 1.1, nan, "1")),
        *(({"by_token": value}, "by_token is .*; it must be True or False") for value in (0.5, "no", None)),
        *(({"labels": torch.arange(count)}, "labels have shapes") for count in (3, 7)),
        ({"labels": torch.arange(6)[None]}, "labels have shapes"),
        ({"labels": torch.arange(6.0)}, "labels.dtype is torch.float32; it must be torch.int64"),
        ({"student_hidden": torch.randn(1, 6, 4)}, r"must be \[tokens, d_model\]"),
        ({"student_head": torch.randn(9, 5)}, r"must be \[tokens, d_model\]"),
        *(({"soft_labels": value}, "soft_labels are a ") for value in ([1, 2], "x", (torch.randn(6), torch.randn(9)))),
    ],
)
def test_mixed_cross_entropy(change, message):
    """With fewer labels than states, the remaining gradients would be uninitialised memory."""
    values = {"student_hidden": torch.randn(6, 4), "student_head": torch.randn(9, 4), "labels": torch.arange(6)}
    with pytest.raises(ValueError, match=message):
        mixed_cross_entropy(**{**values, "soft_labels": torch.randn(6, 9), **change})


@pytest.mark.parametrize(
    "batch",
    [
        (INPUTS[:1], LABELS),
        (INPUTS[0], LABELS[0]),
        (INPUTS.float(), LABELS),
        (INPUTS,),
        {"input_ids": INPUTS, "labels": LABELS},
    ],
)
def test_batches(batch):
    needed = "it must be input_ids [B, S] and labels [B, T], both torch.int64"
    assert needed in refused(negative_log_perplexity, DENSE, [batch])
    assert needed in refused(init_student, TEACHER, ffn_init="mean", calibration=[batch])


@pytest.mark.parametrize("model", [OTHER, PLAIN, "t5-base", None])
def test_models(model, tmp_path):
    kind = f"is '{type(model).__name__}'; it must be a "
    assert kind in refused(negative_log_perplexity, model, [(INPUTS, LABELS)])
    assert kind in refused(save_teacher, model, tmp_path / "teacher")
    if not isinstance(model, str):
        assert kind in refused(init_student, model, ffn_init="mean")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name,values",
    [
        *((name, [0, -1, 1.5, "8"]) for name in ("d_model", "d_ff", "num_experts")),
        *((f"capacity_factor_{mode}", [0, -1, nan, inf, "1"]) for mode in ("train", "eval")),
        *((name, [-0.1, 1, 1.5, nan, "0"]) for name in ("jitter", "dropout", "expert_dropout")),
        ("activation", ["softmax", "gated-nonsense", None, ["relu"]]),
    ],
)
def test_switch_layer(name, values):
    for value in values:
        options = {"d_model": 8, "d_ff": 8, "num_experts": 2, name: value}
        assert refused(SwitchLayer, **options).startswith(f"{name} is {value!r}; it must be ")


def test_what_a_switch_layer_is_called_with():
    layer, hidden = SwitchLayer(8, 8, 2), torch.randn(2, 3, 8)
    for wrong in (torch.randn(2, 3, 9), torch.randn(8), torch.ones(2, 3, 8, dtype=torch.int64)):
        assert "it must be floating point, [batch, length, 8]" in refused(layer, wrong)
    for mask in (torch.ones(2, 4), torch.ones(3, 2), torch.ones(1)):
        assert "padding_mask has shape" in refused(layer, hidden, mask)


@pytest.mark.parametrize("seed", [-1, 2**70, 1.5, "0", None])
def test_seeds(seed):
    needed = f"seed is {seed!r}; it must be a whole number from 0"
    assert refused(init_student, TEACHER, seed=seed) == needed
    if seed != 2**70:  # numpy accepts any
        losses = np.random.default_rng(0).random((3, 50))
        assert refused(fraction_kept, *losses, seed=seed) == needed


@pytest.mark.parametrize("source", [None, 3, ["a"]])
def test_what_is_no_source(source):
    assert refused(load_teacher, source) == f"source is {source!r}; it must be a directory, or a name on the hub"


def test_other_arguments_of_teachers(tmp_path):
    assert refused(load_teacher, tmp_path, {"jitter": 0.1}).startswith("switch is {'jitter': 0.1}; it must be ")
    assert refused(save_teacher, TEACHER, "").startswith("directory is ''; it must be ")
    assert refused(save_teacher, TEACHER, tmp_path / "teacher", "words").startswith("tokenizer is 'words'; it must be ")
    (tmp_path / "file").write_text("mine")
    assert refused(save_teacher, TEACHER, tmp_path / "file").endswith("file is a file; name a directory")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_teacher_is_saved_in_the_current_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_teacher(TEACHER, Path("."))
    assert load_teacher(".").config.num_experts == 2


@pytest.mark.parametrize("value", [nan, inf])
def test_losses(value):
    losses = np.random.default_rng(0).random((3, 50))
    losses[2, 7] = value
    assert refused(fraction_kept, *losses) == "losses contain NaN or infinities; leave such examples out of all losses"
