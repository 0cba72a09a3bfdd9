"""Answers compared with those of transformers' ``generate``, one input at a time, and with the forward pass."""

import numpy as np
import pytest
import torch
from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration, T5Config

from distill.config import ModelConfig
from distill.generation import generate
from distill.models.build import build_dense, new_t5
from distill.models.t5_forward import hidden_states
from teachers import load_teacher
from teachers.build import build_teacher, switch_layers
from teachers.config import SwitchConfig
from tests.teachers.plain_teacher import save_plain_teacher

VOCABULARY, MAX_LENGTH, PAD, EOS = 24, 20, 0, 1
# Seeds of weights with which answers end after many different numbers of tokens, some of them never.
KINDS = {"tied": 5, "untied": 6, "gated": 7, "deep": 32, "switch": 4, "gated switch": 6}
SHAPE = ModelConfig(d_model=16, d_ff=24, d_kv=8, num_heads=2, num_layers=2)


def randomised(model, seed):
    """Large weights, so that each token depends on the input and on the tokens before it."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("layer_norm" in name), std=0.8)
    model.shared.weight.data *= 3
    model.lm_head.weight.data[EOS] *= 1.5
    return model.eval()


def t5(seed, *, tied=True, **changes):
    sizes = {"d_model": 16, "d_ff": 24, "d_kv": 6, "num_heads": 3, "num_layers": 2, "vocab_size": VOCABULARY}
    buckets = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12}
    config = T5Config(**{**sizes, **buckets, **changes}, decoder_start_token_id=PAD, tie_word_embeddings=tied)
    return randomised(new_t5(config, seed=0), seed)


def make(kind, directory):
    """A model, and one of transformers that computes the same."""
    seed = KINDS[kind]
    if kind == "switch":
        plain = randomised(save_plain_teacher(directory), seed)
        plain.save_pretrained(directory)
        return load_teacher(directory), plain
    if kind == "gated switch":  # plain transformers cannot build it
        shape = SHAPE.model_copy(update={"feed_forward": "gated-gelu"})
        model, other = (build_teacher(shape, SwitchConfig(), VOCABULARY, 4, pad=PAD, eos=EOS, seed=0) for _ in range(2))
        for _, layer in switch_layers(other):
            layer.mlp.drops_tokens = False
        return randomised(model, seed), randomised(other, seed)
    changes = {
        "untied": {"tied": False},
        "gated": {"feed_forward_proj": "gated-gelu"},
        "deep": {"num_decoder_layers": 4},
    }
    model = t5(seed, **changes.get(kind, {}))
    return model, model


@pytest.fixture
def inputs():
    generator = np.random.default_rng(0)
    return [[*generator.integers(2, VOCABULARY, length - 1).tolist(), EOS] for length in generator.integers(1, 15, 24)]


def without_special(row):
    row = row[: row.index(EOS)] if EOS in row else row
    return [token for token in row if token != PAD]


def plain_answers(model, inputs, max_length=MAX_LENGTH, beams=1):
    search = {"num_beams": beams, "do_sample": False, "early_stopping": False, "length_penalty": 1.0}
    rows = [model.generate(torch.tensor([ids]), max_new_tokens=max_length, **search)[0, 1:] for ids in inputs]
    return [without_special(row.tolist()) for row in rows]


def forward_answer(model, ids):
    """Greedy decoding, with a forward pass on the whole answer so far for each token."""
    found = []
    while len(found) < MAX_LENGTH and found[-1:] != [EOS]:
        hidden, head = hidden_states(model, torch.tensor([ids]), torch.tensor([[*found, 2]]))
        found.append(int((hidden[-1] @ head.T).argmax()))
    return without_special(found)


# transformers 5 generates nothing with a decoder that is deeper than the encoder.
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "deep"])
def test_greedy_answers_are_those_of_transformers(kind, inputs, tmp_path):
    model, plain = make(kind, tmp_path)
    found = generate(model, inputs, max_length=MAX_LENGTH, batch_size=24)
    lengths = sorted(map(len, found))  # so that examples leave the batch, and some never end
    assert len(set(lengths)) >= 5 and lengths[0] < 3 and lengths[-1] == MAX_LENGTH and len(set(map(tuple, found))) >= 10
    assert found == plain_answers(plain, inputs)


@pytest.mark.parametrize("kind", ["tied", "deep", "gated switch"])
@torch.no_grad()
def test_each_token_is_the_most_probable_one_of_the_forward_pass(kind, inputs, tmp_path):
    model, other = make(kind, tmp_path)
    found = generate(model, inputs, max_length=MAX_LENGTH, batch_size=24)
    assert found == [forward_answer(other, ids) for ids in inputs]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", ["tied", "switch", "gated switch"])
def test_an_answer_depends_on_its_input_alone(kind, beams, inputs, tmp_path):
    """Other batches, another order and other padding; popular experts of a teacher would drop tokens."""
    model, _ = make(kind, tmp_path)
    expected = generate(model, inputs, max_length=MAX_LENGTH, batch_size=1, beams=beams)
    for size in (5, 24):
        assert generate(model, inputs, max_length=MAX_LENGTH, batch_size=size, beams=beams) == expected
    order = np.random.default_rng(1).permutation(len(inputs))
    arrays = [np.array(inputs[number]) for number in order]
    found = generate(model, arrays * 3, max_length=MAX_LENGTH, batch_size=48, beams=beams)
    assert found == [expected[number] for number in order] * 3


@pytest.mark.parametrize("kind", ["tied", "untied", "switch"])
@pytest.mark.parametrize("beams", [2, 4])
def test_answers_of_beam_search_are_those_of_transformers(kind, beams, inputs, tmp_path):
    model, plain = make(kind, tmp_path)
    found = generate(model, inputs, max_length=10, batch_size=24, beams=beams)
    assert found != generate(model, inputs, max_length=10, batch_size=24)
    assert found == plain_answers(plain, inputs, 10, beams)


def test_beam_search_is_that_of_transformers_for_many_weights(inputs):
    for seed in range(10, 14):
        model = t5(seed, num_layers=1, num_decoder_layers=1)
        found = generate(model, inputs[:8], max_length=7, batch_size=8, beams=3)
        assert found == plain_answers(model, inputs[:8], 7, 3)


@torch.no_grad()
def test_beams_find_answers_of_higher_probability_than_greedy_decoding():
    """A vocabulary of five tokens and as many beams as answers of two tokens: the search is exhaustive."""
    model = t5(19, vocab_size=5)
    pairs = [[EOS]] + [[first, second] for first in (0, 2, 3, 4) for second in range(5)]
    inputs = [[token, other, EOS] for token in range(2, 5) for other in range(2, 5)]
    expected = []
    for ids in inputs:
        scores = []
        for pair in pairs:
            hidden, head = hidden_states(model, torch.tensor([ids]), torch.tensor([pair]))
            log_probs = (hidden @ head.T).log_softmax(-1)
            scores.append(float(log_probs[range(len(pair)), pair].mean()))
        expected.append(without_special(pairs[int(np.argmax(scores))]))
    assert generate(model, inputs, max_length=2, batch_size=4, beams=25) == expected
    assert generate(model, inputs, max_length=2, batch_size=4) != expected


def test_a_shorter_limit_cuts_greedy_answers(inputs):
    model = t5(KINDS["tied"])
    full = generate(model, inputs, max_length=MAX_LENGTH, batch_size=8)
    for limit in (1, 7):
        cut = generate(model, inputs, max_length=limit, batch_size=8)
        assert all(short == long[: len(short)] and len(short) <= limit for short, long in zip(cut, full, strict=True))
        assert any(len(short) == limit for short in cut)


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("teacher", [False, True])
def test_bfloat16(teacher, beams):
    """Models that have learned to count down: their answers are the targets, in either precision."""
    arguments, switch = {"pad": PAD, "eos": EOS, "seed": 0}, SwitchConfig(capacity_factor_train=4.0)
    shape = SHAPE.model_copy(update={"d_model": 32, "sparse_every": 1, "num_layers": 1})
    model = build_teacher(shape, switch, 32, 4, **arguments) if teacher else build_dense(shape, 32, **arguments)
    numbers = torch.arange(3, 12)
    inputs = torch.stack([numbers + 10, torch.full_like(numbers, EOS)], 1)
    targets = [[*range(number + 10, 10, -1)] for number in numbers.tolist()]
    labels = torch.tensor([[*row, EOS] + [-100] * (11 - len(row)) for row in targets])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        hidden, head = hidden_states(model, inputs, labels)
        torch.nn.functional.cross_entropy(hidden @ head.T, labels.flatten(), ignore_index=-100).backward()
        optimizer.step()
        optimizer.zero_grad()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert generate(model, inputs.tolist(), max_length=14, batch_size=4, beams=beams) == targets
    assert generate(model.bfloat16(), inputs.tolist(), max_length=14, batch_size=4, beams=beams) == targets
    assert all(torch.equal(value.bfloat16(), model.state_dict()[name]) for name, value in before.items())


def test_the_model_is_left_as_it_was(inputs, tmp_path):
    model, _ = make("gated switch", tmp_path)
    layers = [layer.mlp for _, layer in switch_layers(model)]
    layers[0].drops_tokens = False
    before = {name: (value.dtype, value.data_ptr()) for name, value in model.named_parameters()}
    seen = []

    def stop(done, total):
        seen.append((done, total, model.training, layers[1].drops_tokens, layers[0].wi.dtype))
        if done == 3:
            raise KeyboardInterrupt

    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(KeyboardInterrupt):
        generate(model.train(), inputs, max_length=2, batch_size=5, on_batch=stop)
    assert seen == [(done, 5, False, False, torch.bfloat16) for done in (1, 2, 3)]
    assert model.training and [layer.drops_tokens for layer in layers] == [False, True]
    assert {name: (value.dtype, value.data_ptr()) for name, value in model.named_parameters()} == before
    assert not any(value.requires_grad and value.grad is not None for value in model.parameters())


def test_no_inputs_give_no_answers():
    assert generate(t5(0), [], max_length=3, batch_size=2) == []


def test_wrong_arguments():
    model = t5(0)
    plain = SwitchTransformersForConditionalGeneration(
        SwitchTransformersConfig(**{**SHAPE.model_dump(include={"d_model", "d_ff", "d_kv"}), "num_layers": 2})
    )

    def message(given=model, inputs=((3, 1),), **changes):
        with pytest.raises(ValueError) as error:
            generate(given, inputs, **{"max_length": 3, "batch_size": 2, **changes})
        return str(error.value)

    for name, value in {"max_length": 0, "batch_size": 1.5, "beams": "2"}.items():
        assert message(**{name: value}) == f"{name} is {value!r}; it must be a whole number of at least 1"
    assert message(plain).startswith(
        "model is 'SwitchTransformersForConditionalGeneration'; it must be a T5, or a Switch"
    )
    assert message(inputs=None) == "inputs is None; it must be a list of sequences of token ids"
    other = t5(0)
    other.config.decoder_start_token_id = None
    assert message(other) == "decoder_start_token_id of the model is None; it must be a token id"
    needed = f"it must be a sequence of one or more token ids below {VOCABULARY}"
    for wrong in ([], [3, VOCABULARY], [-1, 1], [0.5], 3, "abc", [[3, 1]]):
        assert message(inputs=[[3, 1], wrong]) == f"inputs[1] is {wrong!r}; {needed}"
