"""A teacher that begins as a dense model."""

import pytest
import torch

from distill.config import ModelConfig
from distill.seq2seq import build_dense
from teachers.config import SwitchConfig
from teachers.model import build_teacher, switch_layers
from teachers.upcycle import upcycle

SHAPE = {"d_model": 16, "d_ff": 24, "d_kv": 8, "num_heads": 2, "num_layers": 2}
WORDS = {"pad": 0, "eos": 1, "seed": 0}


def built(**changes):
    """A teacher of 4 experts that drops nothing, and a dense model of its shape whose every part matters."""
    model = ModelConfig(**{**SHAPE, **changes})
    teacher = build_teacher(model, SwitchConfig(capacity_factor_eval=4.0), 50, 4, **WORDS).eval()
    dense = build_dense(model, 50, **WORDS).eval()
    torch.manual_seed(1)
    for parameter in dense.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return teacher, dense


@pytest.mark.parametrize(
    "changes",
    [{}, {"sparse_every": 1}, {"feed_forward": "gated-gelu"}, {"tie_word_embeddings": False}],
    ids=str,
)
def test_with_gates_of_one_it_says_what_the_dense_model_says(changes):
    teacher, dense = built(**changes)
    upcycle(teacher, dense)
    for _, layer in switch_layers(teacher):
        layer.mlp.router.weight.data.mul_(1e6)  # a gate is 1 where one expert has all of the probability
    ids = {"input_ids": torch.randint(2, 50, (3, 9)), "labels": torch.randint(2, 50, (3, 5))}
    with torch.no_grad():
        assert torch.allclose(teacher(**ids).logits, dense(**ids).logits, atol=1e-5)


def test_routers_stay_as_they_were_drawn():
    teacher, dense = built()
    before = [layer.mlp.router.weight.clone() for _, layer in switch_layers(teacher)]
    upcycle(teacher, dense)
    for weight, (_, layer) in zip(before, switch_layers(teacher), strict=True):
        assert torch.equal(layer.mlp.router.weight, weight)
        assert all(torch.equal(expert, layer.mlp.wi[0]) for expert in layer.mlp.wi)


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match="in the dense model"):
        upcycle(built()[0], built(d_ff=25)[1])
