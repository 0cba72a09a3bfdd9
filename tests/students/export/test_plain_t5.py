"""PlainT5 against transformers, and the parity check on files of another model."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import T5Config, T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Attention

from distill.models.build import new_t5
from distill.models.save import save_t5
from students.export import write_export
from students.export.parity import ParityFailure, check_parity, compare_plain_t5, student_reference, tolerance_of
from students.export.parity_examples import ParityExamples, make_examples
from students.export.plain_t5 import PlainT5, position_buckets


@pytest.mark.parametrize("num_buckets,max_distance", [(32, 128), (32, 256), (8, 20), (16, 64), (4, 100)])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_position_buckets_match_transformers(num_buckets, max_distance, bidirectional):
    distance = torch.arange(-2000, 2001)
    expected = T5Attention._relative_position_bucket(distance, bidirectional, num_buckets, max_distance)
    assert torch.equal(position_buckets(distance, num_buckets, max_distance, bidirectional=bidirectional), expected)


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_new", "silu", "gated-gelu", "gated-relu", "gated-silu"])
@pytest.mark.parametrize("tied", [True, False])
def test_plain_t5_scores_as_transformers_does(activation, tied, tmp_path):
    sizes = {"vocab_size": 50, "d_model": 24, "d_kv": 5, "d_ff": 20, "num_heads": 3, "num_layers": 2}
    config = T5Config(
        **sizes,
        num_decoder_layers=3,
        relative_attention_num_buckets=12,
        relative_attention_max_distance=20,
        layer_norm_epsilon=1e-2,
        feed_forward_proj=activation,
        tie_word_embeddings=tied,
        decoder_start_token_id=3,
    )
    t5 = new_t5(config, seed=0).eval()
    for number, parameter in enumerate(t5.parameters()):
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    save_t5(t5, tmp_path)
    generator = torch.Generator().manual_seed(1)
    inputs, targets = (
        [torch.randint(2, 50, (length,), generator=generator).tolist() for length in lengths]
        for lengths in ((40, 1), (30, 2))
    )
    for row, target, scores in zip(inputs, targets, PlainT5(tmp_path).score(inputs, targets), strict=True):
        logits = t5(input_ids=torch.tensor([row]), decoder_input_ids=torch.tensor([[3, *target[:-1]]])).logits[0]
        expected = logits.double().log_softmax(-1)[range(len(target)), target]
        torch.testing.assert_close(torch.tensor(scores).double(), expected, rtol=0, atol=2e-5)


class ParityCheck:
    """The parity check of ``PlainT5`` against one student."""

    def __init__(self, directory, data):
        self.directory = directory
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self.examples = make_examples(data.tokens("test"), data.special_tokens, tokenizer)
        self.reference = student_reference(directory, self.examples)

    def run(self, export):
        parity = compare_plain_t5(export, self.examples, self.reference)
        check_parity(parity, "float32", "it differs")
        return parity


@pytest.fixture(scope="module")
def tied(student, data):
    return ParityCheck(student, data)


@pytest.fixture(scope="module")
def untied(gated_student, data):
    return ParityCheck(gated_student, data)


@pytest.fixture
def export(untied, tmp_path):
    write_export(untied.directory, tmp_path, "hf", "float32")
    return tmp_path


def test_an_unchanged_export_passes(tied, untied, export, tmp_path_factory):
    other = tmp_path_factory.mktemp("tied")
    write_export(tied.directory, other, "hf", "float32")
    for student, directory in ((untied, export), (tied, other)):
        parity = student.run(directory)
        assert parity.log_probability_difference_max < 1e-4 and parity.tokens > 20


@pytest.mark.parametrize("number", [1, 2, 5])
def test_few_examples_are_enough(tied, tmp_path, number):
    write_export(tied.directory, tmp_path, "hf", "float32")
    few = ParityExamples(*(rows[:number] for rows in tied.examples))
    parity = compare_plain_t5(tmp_path, few, student_reference(tied.directory, few))
    assert 0 < parity.tokens <= sum(map(len, few.targets)) and not parity.failures(tolerance_of("float32"))


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": True},
        {"feed_forward_proj": "gated-silu"},
        {"layer_norm_epsilon": 1e-2},
        {"relative_attention_max_distance": 20},
    ],
)
def test_a_config_of_another_model_is_refused(untied, export, changes):
    """transformers 5 would load the first as the student, because of a key that only transformers 5 has."""
    config = json.loads((export / "config.json").read_text())
    (export / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(ParityFailure, match="it differs: mean difference of log-probabilities"):
        untied.run(export)


def test_an_encoder_with_an_untied_embedding_is_refused(untied, export):
    """Only transformers 5 supports one. Other readers use ``shared``, or the tensor that they read last."""
    t5 = T5ForConditionalGeneration.from_pretrained(export)
    t5.encoder.embed_tokens.weight = torch.nn.Parameter(t5.shared.weight * 1.1)
    save_t5(t5, export)
    examples = untied.examples
    assert "encoder.embed_tokens.weight" in load_file(export / "model.safetensors")
    with pytest.raises(ParityFailure, match="it differs"):
        check_parity(compare_plain_t5(export, examples, student_reference(export, examples)), "float32", "it differs")


def test_a_file_without_a_tensor_of_the_config_is_refused(untied, export):
    weights = load_file(export / "model.safetensors")
    save_file(
        {name: value for name, value in weights.items() if name != "lm_head.weight"}, export / "model.safetensors"
    )
    with pytest.raises(ParityFailure, match=r"cannot be read without transformers: KeyError 'lm_head.weight'"):
        untied.run(export)
    (export / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ParityFailure, match="cannot be read without transformers: SafetensorError"):
        untied.run(export)
