"""Build a transformers Switch model whose sparse layers are SwitchLayers.

Plain transformers has a weight such as ``mlp.experts.expert_3.wi.weight`` for each expert. A SwitchLayer has one tensor
``mlp.wi`` [experts, d_ff, d_model] for all experts, and its router's weight is ``mlp.router.weight``, not
``mlp.router.classifier.weight``. All other weights have the same names and shapes.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import nn
from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration
from transformers.models.switch_transformers.modeling_switch_transformers import (
    SwitchTransformersBlock,
    SwitchTransformersDenseActDense,
    SwitchTransformersLayerFF,
)
from transformers.models.t5.modeling_t5 import T5DenseGatedActDense

from distill.arguments import require
from distill.config import ModelConfig
from distill.models.build import common_config, count_parameters
from teachers.config import SwitchConfig
from teachers.switch_layer import RoutingStatistics, SwitchLayer

# Plain transformers counts capacity per sequence and expert. With this capacity it drops no tokens.
_NO_CAPACITY_LIMIT = 2**20


class GatedSwitch(SwitchTransformersForConditionalGeneration):
    """A Switch model with T5's gated FFNs (table 9 of the paper), which transformers' own class cannot build."""

    def __init__(self, config: SwitchTransformersConfig):
        super().__init__(config)
        for module in list(self.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, SwitchTransformersDenseActDense):
                    # The class reads only attributes that SwitchTransformersConfig has too.
                    setattr(module, name, T5DenseGatedActDense(config))  # type: ignore[arg-type]
        self.post_init()


class SwitchFeedForward(nn.Module):
    """A SwitchLayer with normalisation and residual connection, in place of SwitchTransformersLayerFF.

    After a forward pass ``statistics`` holds the layer's RoutingStatistics.
    """

    def __init__(self, switch_layer: SwitchLayer, layer_norm: nn.Module):
        super().__init__()
        self.mlp = switch_layer
        self.layer_norm = layer_norm
        self.padding_mask: torch.Tensor | None = None  # set by a hook of the stack before each forward pass
        self.statistics: RoutingStatistics | None = None

    def forward(self, hidden: torch.Tensor, **_: object) -> torch.Tensor:
        """``hidden`` [batch, length, d_model] plus the output of the experts."""
        mask = self.padding_mask
        if mask is not None:
            mask = mask[:, -hidden.shape[1] :]  # during generation the mask includes cached tokens
        return hidden + self.experts(self.layer_norm(hidden), mask)

    def experts(self, normed: torch.Tensor, padding_mask: torch.Tensor | None = None) -> torch.Tensor:
        """The SwitchLayer alone, on normalised states; ``distill.models.t5_forward`` calls it."""
        output, self.statistics = self.mlp(normed, padding_mask)
        return output


def build_teacher(
    model: ModelConfig,
    switch: SwitchConfig,
    vocab_size: int,
    num_experts: int,
    *,
    pad: int,
    eos: int,
    seed: int,
    process: int = 0,
    processes: int = 1,
) -> SwitchTransformersForConditionalGeneration:
    """A randomly initialised teacher: T5's initialisation, and in Switch layers the paper's (scale 0.1).

    Args:
        model: the shape.
        switch: the settings of the Switch layers.
        vocab_size: rows of the embedding.
        num_experts: number of experts in each Switch layer.
        pad, eos: token ids.
        seed: of the weights.
        process, processes: with several processes, this one keeps only its share of the experts. The weights are those
            of the whole teacher. Memory never holds more than the share and all experts of one layer.
    """
    gated = model.feed_forward.startswith("gated-")
    config = SwitchTransformersConfig(
        **{**common_config(model, vocab_size, pad=pad, eos=eos), "is_gated_act": gated},
        num_sparse_encoder_layers=model.num_layers // model.sparse_every,
        num_sparse_decoder_layers=model.num_layers // model.sparse_every,
        num_experts=1,  # transformers' own experts are replaced below
        dense_act_fn={"gated-gelu": "gelu_new"}.get(model.feed_forward, model.feed_forward),
    )
    torch.manual_seed(seed)
    built = (GatedSwitch if gated else SwitchTransformersForConditionalGeneration)(config)
    if not config.tie_word_embeddings:
        # transformers initialises an untied head at scale 1, which fits only a model that scales its output down.
        nn.init.normal_(built.lm_head.weight, std=config.d_model**-0.5)
        built.encoder.embed_tokens.weight = built.decoder.embed_tokens.weight = built.shared.weight
    for module in built.modules():
        if isinstance(module, T5DenseGatedActDense):  # the Switch model of transformers does not initialise it
            for weight in (module.wi_0.weight, module.wi_1.weight, module.wo.weight):
                nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
    config.num_experts = num_experts
    blocks = {name: [i for i, block in enumerate(stack.block) if block.is_sparse] for name, stack in _stacks(built)}
    return with_switch_layers(built, switch, blocks, process, processes)


def build_on_meta(
    config: SwitchTransformersConfig,
    switch: SwitchConfig,
    sparse: Mapping[str, Collection[int]],
    process: int = 0,
    processes: int = 1,
) -> SwitchTransformersForConditionalGeneration:
    """A teacher without values, on the meta device.

    Args:
        config: the sizes; it need not describe which blocks are sparse.
        switch: the settings of the Switch layers.
        sparse: stack (encoder, decoder) -> indices of its sparse blocks.
        process, processes: as for ``build_teacher``.
    """
    experts, config.num_experts = config.num_experts, 1
    with torch.device("meta"):
        built = SwitchTransformersForConditionalGeneration(config)
        config.num_experts = experts
        for _, stack in _stacks(built):
            for block in stack.block:
                layer = block.layer[-1] = SwitchTransformersLayerFF(config, is_sparse=False)
                if config.is_gated_act:
                    layer.mlp = T5DenseGatedActDense(config)  # type: ignore[arg-type, assignment]  # as in GatedSwitch
        return with_switch_layers(built, switch, sparse, process, processes)


def with_switch_layers(
    model: SwitchTransformersForConditionalGeneration,
    settings: SwitchConfig,
    sparse: Mapping[str, Collection[int]],
    process: int = 0,
    processes: int = 1,
) -> SwitchTransformersForConditionalGeneration:
    """Replace the last layer of the ``sparse`` blocks with an initialised SwitchLayer in place; returns ``model``.

    Args:
        model: a plain Switch model.
        settings: of the Switch layers.
        sparse: stack (encoder, decoder) -> indices of its sparse blocks.
        process, processes: as for ``build_teacher``.
    """
    config = model.config
    config.expert_capacity = _NO_CAPACITY_LIMIT
    for name, stack in _stacks(model):
        replaced = []
        for number, block in enumerate(stack.block):
            assert isinstance(block, SwitchTransformersBlock)
            plain = block.layer[-1]
            if isinstance(plain, SwitchTransformersLayerFF) and number in sparse[name]:
                layer = SwitchLayer(
                    config.d_model,
                    config.d_ff,
                    config.num_experts,
                    capacity_factor_train=settings.capacity_factor_train,
                    capacity_factor_eval=settings.capacity_factor_eval,
                    jitter=settings.jitter,
                    activation=f"gated-{config.dense_act_fn}" if config.is_gated_act else config.dense_act_fn,
                    dropout=config.dropout_rate,
                    expert_dropout=settings.expert_dropout,
                ).to(plain.layer_norm.weight)
                layer.keep_share(process, processes)
                replaced.append(SwitchFeedForward(layer, plain.layer_norm))
                block.layer[-1] = replaced[-1]
        stack.register_forward_pre_hook(_hand_down_padding_mask(replaced), with_kwargs=True)
    return model


def count_undivided(model: SwitchTransformersForConditionalGeneration) -> int:
    """Number of parameters of a teacher, including the experts that only other processes hold."""
    count = count_parameters(model)
    for _, layer in switch_layers(model):
        for weight in (layer.mlp.wi, layer.mlp.wi_gate, layer.mlp.wo):
            if weight is not None:
                count += (layer.mlp.num_experts - len(weight)) * weight.shape[1:].numel()
    return count


def switch_layers(model: nn.Module) -> list[tuple[str, SwitchFeedForward]]:
    """The name and module of every Switch layer, encoder first."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, SwitchFeedForward)]


def short_name(layer: str) -> str:
    """``encoder.block.3.layer.1`` -> ``encoder.3``."""
    stack, _, block, *_ = layer.split(".")
    return f"{stack}.{block}"


def require_teacher(name: str, model: object) -> None:
    """Raise ValueError unless an argument is a Switch model whose sparse layers are SwitchLayers."""
    needed = "a Switch model from load_teacher"
    require(name, type(model).__name__, needed, lambda _: isinstance(model, nn.Module) and switch_layers(model) != [])


def _stacks(model: SwitchTransformersForConditionalGeneration) -> list[tuple[str, Any]]:
    return [("encoder", model.encoder), ("decoder", model.decoder)]


def _hand_down_padding_mask(layers: list[SwitchFeedForward]) -> Callable[..., None]:
    """A hook that gives the padding mask to the layers. Blocks get only the attention mask that is made from it."""

    def hook(stack: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for layer in layers:
            layer.padding_mask = kwargs.get("attention_mask")

    return hook
