"""Layouts of Switch models, compared with the tensors of transformers' own models."""

import pytest
import torch
from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

from distill.errors import UserError
from teachers.build import build_on_meta
from teachers.config import SwitchConfig
from teachers.layout import expected_shapes, is_expert_weight, plain_names, read_layout, sparse_blocks
from tests.public_checkpoints import CONFIG, EMBEDDINGS, EXPERT


def config_of(**changes) -> SwitchTransformersConfig:
    """A config of ``CONFIG``, whose steps follow from its numbers of sparse layers."""
    steps = {"encoder_sparse_step", "decoder_sparse_step", "torch_dtype"}
    values = {name: value for name, value in CONFIG.items() if name not in steps}
    return SwitchTransformersConfig(**{**values, **changes})


def shapes_of(config: SwitchTransformersConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = SwitchTransformersForConditionalGeneration(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


SIZES = [
    {},
    {"num_layers": 3, "num_decoder_layers": 2, "num_sparse_encoder_layers": 3, "num_sparse_decoder_layers": 1},
    {"num_layers": 2, "num_sparse_decoder_layers": 4},
    {"num_layers": 5, "num_decoder_layers": 1, "num_sparse_encoder_layers": 2},
    {"num_layers": 12, "num_decoder_layers": 12, "num_sparse_encoder_layers": 6, "num_sparse_decoder_layers": 6},
    {"num_sparse_encoder_layers": 0, "num_sparse_decoder_layers": 2, "num_experts": 1},
    {"d_model": 10, "d_kv": 4, "num_heads": 3, "relative_attention_num_buckets": 7, "num_experts": 11},
    {"tie_word_embeddings": False, "vocab_size": 70},
]


@pytest.mark.parametrize("changes", SIZES, ids=str)
def test_the_layout_of_a_model_of_transformers_is_its_config(changes):
    config = config_of(**changes)
    shapes = shapes_of(config)
    layout = read_layout(shapes, "it")
    assert layout.sizes == {name: getattr(config, name) for name in layout.sizes}
    assert layout.differences(config.to_dict()) == [] and not layout.gated and layout.has_head
    for stack in ("encoder", "decoder"):
        routers = [name.split(".") for name in shapes if name.startswith(stack) and ".router." in name]
        assert layout.sparse[stack] == tuple(sorted(int(parts[2]) for parts in routers))
    assert expected_shapes(layout) == {name: shape for name, shape in shapes.items() if name not in EMBEDDINGS}
    without = {name: shape for name, shape in shapes.items() if name not in EMBEDDINGS}
    assert read_layout(without, "it") == layout._replace(has_head=False)


@pytest.mark.parametrize("number", range(14))
def test_sparse_blocks_are_those_of_transformers(number):
    for layers in range(1, 13):
        config = config_of(num_layers=layers, num_sparse_encoder_layers=number, num_experts=1, d_model=8, d_ff=8)
        with torch.device("meta"):
            model = SwitchTransformersForConditionalGeneration(config)
        found = tuple(index for index, block in enumerate(model.encoder.block) if block.is_sparse)
        assert sparse_blocks(layers, number) == found, layers


@pytest.mark.parametrize("gated", [False, True])
def test_names_of_parameters_are_those_of_the_checkpoint(gated):
    config = config_of(is_gated_act=gated, dense_act_fn="gelu_new" if gated else "relu")
    model = build_on_meta(config, SwitchConfig(), {"encoder": (1, 3), "decoder": (0,)})
    names = [name for name, _ in model.named_parameters() if "embed_tokens" not in name]
    plain = {one: name for name in names for one in plain_names(name, 4, gated=gated)}
    layout = read_layout(
        {one: tuple(model.get_parameter(name).shape[is_expert_weight(name) :]) for one, name in plain.items()},
        "it",
    )
    assert layout.gated == gated and layout.sparse == {"encoder": (1, 3), "decoder": (0,)}
    assert layout.sizes["num_experts"] == 4 and set(expected_shapes(layout)) == set(plain) - {"lm_head.weight"}


def test_every_difference_to_a_config_is_a_sentence():
    layout = read_layout(shapes_of(config_of()), "it")
    config = {**CONFIG, "num_experts": 8, "num_sparse_decoder_layers": 4, "num_sparse_encoder_layers": 1}
    del config["d_ff"]
    assert layout.differences(config) == [
        "its config.json has num_experts 8, but its tensors have 4; the tensors are used",
        "its config.json describes sparse encoder blocks 1, but its tensors have 1, 3; the tensors are used",
        "its config.json describes sparse decoder blocks 0, 1, 2, 3, but its tensors have 1, 3; the tensors are used",
    ]


ROUTER = "decoder.block.3.layer.2.mlp.router.classifier.weight"
BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda shapes: shapes.pop(EXPERT), f"has 1 missing tensors for a Switch Transformer, such as {EXPERT}; copy"),
        (lambda shapes: shapes.pop(ROUTER), f"1 missing tensors for a Switch Transformer, such as {ROUTER}"),
        (
            lambda shapes: shapes.pop("shared.weight"),
            "1 missing tensors for a Switch Transformer, such as shared.weight",
        ),
        (lambda shapes: shapes.pop(BIAS), f"1 missing tensors for a Switch Transformer, such as {BIAS}"),
        (lambda shapes: shapes.update(more=(1,)), "has 1 unexpected tensors for a Switch Transformer, such as more;"),
        (
            lambda shapes: shapes.update({EXPERT.replace("expert_2", "expert_9"): (32, 16)}),
            "missing tensors for a Switch",
        ),
        (
            lambda shapes: shapes.update({EXPERT: (16, 32)}),
            f"has {EXPERT} of shape (16, 32), but its other tensors need (32",
        ),
        (
            lambda shapes: shapes.update({ROUTER: (5, 16)}),
            f"has {ROUTER} of shape (5, 16), but its other tensors need (4, 16",
        ),
        (
            lambda shapes: shapes.update({"lm_head.weight": (65, 16)}),
            "has lm_head.weight of shape (65, 16), but its other",
        ),
        (
            lambda shapes: shapes.update({"shared.weight": (64,)}),
            "has shared.weight of shape (64,), which is no matrix",
        ),
        (lambda shapes: shapes.update({BIAS: (32, 0)}), f"has {BIAS} of shape (32, 0), which is no matrix"),
        (lambda shapes: shapes.update({BIAS: ()}), "of shape (), which is no matrix"),
        (lambda shapes: shapes.clear(), "has no Switch layer; name a sparse model"),
        (
            lambda shapes: shapes.update({EXPERT.replace("expert_2", f"expert_{'9' * 5000}"): (32, 16)}),
            "1 unexpected tensors",
        ),
        (
            lambda shapes: shapes.update({f"encoder.block.{10**6}.layer.1.mlp.wi.weight": (32, 16)}),
            "1 unexpected tensors",
        ),
        (lambda shapes: shapes.update({f"encoder.block.{'9' * 5000}.layer.1.mlp.wi.weight": (32, 16)}), "1 unexpected"),
        (lambda shapes: shapes.update({f"{EXPERT}.{10**9}": (1,)}), "1 unexpected tensors"),
    ],
)
def test_tensors_that_are_not_those_of_a_switch_transformer_are_one_sentence(change, message):
    shapes = shapes_of(config_of())
    change(shapes)
    with pytest.raises(UserError) as refused:
        read_layout(shapes, "it")
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_dense_model_has_no_switch_layer():
    shapes = shapes_of(config_of())
    dense = {name: shape for name, shape in shapes.items() if ".experts." not in name and ".router." not in name}
    with pytest.raises(UserError, match="it has no Switch layer; name a sparse model"):
        read_layout(dense, "it")
