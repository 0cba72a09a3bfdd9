"""Answers compared with those of transformers' ``generate``, one input at a time, and with the forward pass."""

import numpy as np
import pytest
import torch
from transformers import T5Config

from distill.config import ModelConfig
from distill.generation import generate
from distill.models.build import new_t5
from distill.models.t5_forward import hidden_states
from teachers import load_teacher
from teachers.build import build_teacher
from teachers.config import SwitchConfig
from tests.teachers.plain_teacher import save_plain_teacher

VOCABULARY, MAX_LENGTH = 24, 20
KINDS = ["tied", "untied", "gated", "deep", "switch", "gated switch"]


def randomised(model, seed=3):
    """Weights that make answers of many lengths, each a function of its input."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("layer_norm" in name), std=0.6)
    model.shared.weight.data *= 3
    model.lm_head.weight.data[model.config.eos_token_id] *= 2
    return model.eval()


def t5(seed=0, tied=True, **changes):
    sizes = {"d_model": 16, "d_ff": 24, "d_kv": 6, "num_heads": 3, "num_layers": 2, "relative_attention_num_buckets": 8}
    config = T5Config(
        **{"vocab_size": VOCABULARY, "decoder_start_token_id": 0, "relative_attention_max_distance": 12, **sizes, **changes},
        tie_word_embeddings=tied,
    )
    return randomised(new_t5(config, seed=seed))


def make(kind, directory):
    """A model of this project, and one of transformers that computes the same."""
    if kind == "switch":
        plain = randomised(save_plain_teacher(directory))
        plain.save_pretrained(directory)
        return load_teacher(directory), plain
    if kind == "gated switch":  # which plain transformers cannot build
        shape = ModelConfig(d_model=16, d_ff=24, d_kv=8, num_heads=2, num_layers=2, feed_forward="gated-gelu")
        settings = {"pad": 0, "eos": 1, "seed": 0}
        switch = SwitchConfig(capacity_factor_eval=4.0)
        model = randomised(build_teacher(shape, switch, VOCABULARY, 4, **settings))
        return model, model
    changes = {"untied": {"tied": False}, "gated": {"feed_forward_proj": "gated-gelu"}, "deep": {"num_decoder_layers": 4}}
    model = t5(**changes.get(kind, {}))
    return model, model


@pytest.fixture
def inputs():
    generator = np.random.default_rng(0)
    return [[*generator.integers(2, VOCABULARY, length - 1).tolist(), 1] for length in generator.integers(1, 15, 24)]


def ended(row, model):
    row = row[: row.index(model.config.eos_token_id)] if model.config.eos_token_id in row else row
    return [token for token in row if token != model.config.pad_token_id]


def plain_answers(model, inputs, max_length, beams=1):
    search = {"num_beams": beams, "do_sample": False, "early_stopping": False, "length_penalty": 1.0}
    rows = [model.generate(torch.tensor([ids]), max_new_tokens=max_length, **search)[0, 1:].tolist() for ids in inputs]
    return [ended(row, model) for row in rows]


def forward_answer(model, ids, max_length):
    """Greedy decoding with a whole forward pass for each token."""
    found = []
    while len(found) < max_length and found[-1:] != [model.config.eos_token_id]:
        hidden, head = hidden_states(model, torch.tensor([ids]), torch.tensor([[*found, 2]]))
        found.append(int((hidden[-1] @ head.T).argmax()))
    return ended(found, model)


def assert_lengths_differ(answers):
    """Some answers end early, at several steps, so that examples leave the batch."""
    assert len({len(answer) for answer in answers}) > 4 and min(map(len, answers)) < MAX_LENGTH // 2


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_answers_are_those_of_transformers(kind, inputs, tmp_path):
    model, plain = make(kind, tmp_path)
    found = generate(model, inputs, max_length=MAX_LENGTH, batch_size=24)
    assert_lengths_differ(found)
    assert found == plain_answers(plain, inputs, MAX_LENGTH)
