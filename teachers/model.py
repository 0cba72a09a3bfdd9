"""Build, load and save a transformers Switch model whose sparse layers are SwitchLayers.

Plain transformers names an expert's weights ``mlp.experts.expert_3.wi.weight``; a SwitchLayer holds all of them in one
tensor ``mlp.wi`` [experts, d_ff, d_model]. Every other weight has the same name and shape on both sides.
"""

from pathlib import Path

import torch
from torch import nn
from transformers import (
    PreTrainedTokenizerBase,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
)
from transformers.models.switch_transformers.modeling_switch_transformers import (
    SwitchTransformersDenseActDense,
    SwitchTransformersLayerFF,
)
from transformers.models.t5.modeling_t5 import T5DenseGatedActDense

from distill.arguments import require
from distill.config import ModelConfig
from distill.errors import UserError
from distill.io.files import new_directory, read_json, write_json
from distill.io.hub_files import CONFIG, local_files
from distill.models.build import common_config, embeddings
from distill.models.directory import read_model_config
from distill.models.load import check_tensors, fetch_checked, load_fetched
from distill.models.save import save_tokenizer
from teachers.check import check_teacher, check_teacher_config
from teachers.config import SwitchConfig
from teachers.switch_layer import RoutingStatistics, SwitchLayer

# Plain transformers counts capacity per sequence and expert; this much means that it drops nothing.
_NO_CAPACITY_LIMIT = 2**20
# Name in a plain checkpoint -> name in a SwitchLayer, by whether the experts are gated (T5's wi_0 is the gate).
_EXPERT_WEIGHTS = {False: {"wi": "wi", "wo": "wo"}, True: {"wi_0": "wi_gate", "wi_1": "wi", "wo": "wo"}}


class _GatedSwitch(SwitchTransformersForConditionalGeneration):
    """A Switch model with T5's gated FFNs (table 9 of the paper), which transformers' own class cannot build."""

    def __init__(self, config: SwitchTransformersConfig):
        super().__init__(config)
        for module in list(self.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, SwitchTransformersDenseActDense):
                    setattr(module, name, T5DenseGatedActDense(config))
        self.post_init()


class SwitchFeedForward(nn.Module):
    """The residual block round a SwitchLayer: what transformers' LayerFF is to its own sparse layer.

    After a forward pass ``statistics`` holds the layer's RoutingStatistics.
    """

    def __init__(self, switch_layer: SwitchLayer, layer_norm: nn.Module):
        super().__init__()
        self.mlp = switch_layer
        self.layer_norm = layer_norm
        self.padding_mask: torch.Tensor | None = None  # set by the stack before each forward pass
        self.statistics: RoutingStatistics | None = None

    def forward(self, hidden: torch.Tensor, **_: object) -> torch.Tensor:
        """``hidden`` [batch, length, d_model] -> the same, with the experts' output added."""
        mask = self.padding_mask
        if mask is not None:
            mask = mask[:, -hidden.shape[1] :]  # in generation, the mask also covers the cached tokens
        return hidden + self.experts(self.layer_norm(hidden), mask)

    def experts(self, normed: torch.Tensor, padding_mask: torch.Tensor | None = None) -> torch.Tensor:
        """The block without norm and residual, which is what ``distill.models.t5_forward`` calls."""
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
) -> SwitchTransformersForConditionalGeneration:
    """A randomly initialised teacher: T5's initialisation, and the paper's (scale 0.1) in its Switch layers."""
    config = SwitchTransformersConfig(
        **common_config(model, vocab_size, pad=pad, eos=eos),
        num_sparse_encoder_layers=model.num_layers // model.sparse_every,
        num_sparse_decoder_layers=model.num_layers // model.sparse_every,
        num_experts=1,  # those of transformers are thrown away below
        dense_act_fn={"gated-gelu": "gelu_new"}.get(model.feed_forward, model.feed_forward),
        is_gated_act=model.feed_forward.startswith("gated-"),
    )
    torch.manual_seed(seed)
    built = (_GatedSwitch if config.is_gated_act else SwitchTransformersForConditionalGeneration)(config)
    if not config.tie_word_embeddings:
        # transformers draws an untied head at scale 1, which is right only where the output is scaled down.
        nn.init.normal_(built.lm_head.weight, std=config.d_model**-0.5)
        built.encoder.embed_tokens.weight = built.decoder.embed_tokens.weight = built.shared.weight
    for module in built.modules():
        if isinstance(module, T5DenseGatedActDense):  # transformers' Switch model does not know how to
            for weight in (module.wi_0.weight, module.wi_1.weight, module.wo.weight):
                nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
    config.num_experts = num_experts
    return _with_switch_layers(built, switch, copy_experts=False)


def load_teacher(source: str | Path, switch: SwitchConfig | None = None) -> SwitchTransformersForConditionalGeneration:
    """Read a transformers Switch model from a directory or the hub; its sparse layers become SwitchLayers.

    ReLU, GELU or gated GELU, tied or untied. ``switch`` gives capacity factors, jitter and expert dropout; the
    paper's values where it is None. The model is in eval mode.

    Args:
        source: a directory, or a name on the hub that may be pinned (``NAME@REVISION``).

    Raises:
        UserError: it cannot be read, is no Switch model, its tensors do not fit its config, or are not finite.
        ValueError: an argument is of another type.
    """
    require("source", source, "a directory, or a name on the hub", lambda given: isinstance(given, str | Path))
    switch = SwitchConfig() if switch is None else switch
    require("switch", switch, "a SwitchConfig", lambda given: isinstance(given, SwitchConfig))
    source, what = str(source), f"teacher {str(source)!r}"
    fetched = fetch_checked(source, what, lambda: check_teacher(source))
    config = read_teacher_config(source)
    cls = _GatedSwitch if config.is_gated_act else SwitchTransformersForConditionalGeneration
    model, report = load_fetched(cls, fetched, what, config=config)
    model.generation_config.decoder_start_token_id = config.decoder_start_token_id  # which its file may leave out
    check_tensors(what, "missing", _share_embeddings(model, set(report["missing_keys"])))
    check_tensors(what, "unexpected", report["unexpected_keys"])
    return _with_switch_layers(model, switch, copy_experts=True).eval()


def read_teacher_config(source: str | Path) -> SwitchTransformersConfig:
    """The config of a checkpoint, with ``is_gated_act`` and the activation's own name set whatever its age.

    Raises:
        UserError: it cannot be read, is no Switch model, or has a router that the paper's has not.
    """
    what = f"teacher {str(source)!r}"
    check_teacher_config(read_model_config(str(source), what), what)
    try:
        config = SwitchTransformersConfig.from_pretrained(local_files(str(source), "model", what, CONFIG))
    except Exception as error:  # transformers raises many kinds; each means that there is no config to use
        cause = " ".join(str(error).split())[:300]
        raise UserError(f"{what} cannot be loaded: {cause}") from error
    if getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = config.pad_token_id
    names = (config.dense_act_fn, getattr(config, "feed_forward_proj", None) or "")
    config.is_gated_act = getattr(config, "is_gated_act", False) or any(name.startswith("gated-") for name in names)
    activation = config.dense_act_fn.removeprefix("gated-")
    config.dense_act_fn = "gelu_new" if config.is_gated_act and activation == "gelu" else activation
    return config


def save_teacher(
    model: SwitchTransformersForConditionalGeneration,
    directory: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """Write a directory that plain transformers reads, with equal outputs where no token is dropped.

    Plain transformers has no gated FFN, and refuses a gated teacher: only ``load_teacher`` reads it back.

    Raises:
        ValueError: an argument is of another kind.
        UserError: there is a file in place of the directory, or it cannot be made.
        DiskFull: nothing has changed.
    """
    require_teacher("model", model)
    require("directory", directory, "a directory", lambda given: isinstance(given, str | Path) and str(given))
    require("tokenizer", tokenizer, "a tokenizer", lambda given: given is None or hasattr(given, "save_pretrained"))
    with new_directory(Path(directory).resolve()) as tmp_dir:
        state = plain_state_dict(model)
        if not model.config.tie_word_embeddings:
            # Plain transformers then shares nothing, and would draw at random what it does not find.
            state |= {f"{name}.weight": module.weight.clone() for name, module in embeddings(model).items()}
        model.save_pretrained(tmp_dir, state_dict=state)
        if model.config.is_gated_act:
            # Of the function's own name, plain transformers would build FFNs without gates and draw them at random.
            config = read_json(tmp_dir / "config.json", "save the teacher again")
            config["dense_act_fn"] = f"gated-{model.config.dense_act_fn.replace('gelu_new', 'gelu')}"
            write_json(tmp_dir / "config.json", config)
        if tokenizer is not None:
            save_tokenizer(tokenizer, tmp_dir)


def require_teacher(name: str, model: object) -> None:
    """Raise ValueError where an argument is no Switch model whose sparse layers are SwitchLayers."""
    needed = "a Switch model as load_teacher gives it"
    require(name, type(model).__name__, needed, lambda _: isinstance(model, nn.Module) and switch_layers(model) != [])


def plain_state_dict(model: SwitchTransformersForConditionalGeneration) -> dict[str, torch.Tensor]:
    """The teacher's tensors under the names of plain transformers; expert weights are views, not copies."""
    state = {}
    layers = dict(switch_layers(model))
    for name, tensor in model.state_dict().items():
        owner, _, weight = name.rpartition(".mlp.")
        if owner not in layers:
            state[name] = tensor
        elif weight == "router.weight":
            state[f"{owner}.mlp.router.classifier.weight"] = tensor
        else:
            names = _EXPERT_WEIGHTS[layers[owner].mlp.wi_gate is not None]
            plain = next(plain for plain, ours in names.items() if ours == weight)
            for expert, value in enumerate(tensor):
                state[f"{owner}.mlp.experts.expert_{expert}.{plain}.weight"] = value
    return state


def switch_layers(model: nn.Module) -> list[tuple[str, SwitchFeedForward]]:
    """Name and module of every Switch layer, encoder first."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, SwitchFeedForward)]


def short_name(layer: str) -> str:
    """``encoder.block.3.layer.1`` -> ``encoder.3``."""
    stack, _, block, *_ = layer.split(".")
    return f"{stack}.{block}"


def _with_switch_layers(
    model: SwitchTransformersForConditionalGeneration, settings: SwitchConfig, *, copy_experts: bool
) -> SwitchTransformersForConditionalGeneration:
    """Replace each sparse LayerFF in place, one by one, so that memory holds one layer twice at most."""
    config = model.config
    config.expert_capacity = _NO_CAPACITY_LIMIT
    for stack in (model.encoder, model.decoder):
        replaced = []
        for block in stack.block:
            plain = block.layer[-1]
            if isinstance(plain, SwitchTransformersLayerFF) and plain.is_sparse:
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
                if copy_experts:
                    _copy_experts(plain.mlp, layer)
                block.layer[-1] = SwitchFeedForward(layer, plain.layer_norm)
                replaced.append(block.layer[-1])
        stack.register_forward_pre_hook(_hand_down_padding_mask(replaced), with_kwargs=True)
    return model


def _share_embeddings(model: SwitchTransformersForConditionalGeneration, missing: set[str]) -> set[str]:
    """Let an untied model's encoder and decoder use ``shared`` where it is theirs; return what is still missing.

    An untied checkpoint may leave them out (they are the same as ``shared``) or hold a copy or a weight of its own.
    """
    for stack in ("encoder", "decoder"):
        module, name = getattr(model, stack).embed_tokens, f"{stack}.embed_tokens.weight"
        if name in missing or torch.equal(module.weight, model.shared.weight):
            module.weight = model.shared.weight
            missing = missing - {name}
    return missing


@torch.no_grad()
def _copy_experts(plain: nn.Module, layer: SwitchLayer) -> None:
    layer.router.weight.copy_(plain.router.classifier.weight)
    for theirs, ours in _EXPERT_WEIGHTS[layer.wi_gate is not None].items():
        for expert in range(layer.num_experts):
            getattr(layer, ours)[expert].copy_(getattr(plain.experts[f"expert_{expert}"], theirs).weight)


def _hand_down_padding_mask(layers: list[SwitchFeedForward]):
    """Blocks see only the attention mask that was made of the padding mask; the router needs the latter."""

    def hook(stack: nn.Module, args: tuple, kwargs: dict) -> None:
        for layer in layers:
            layer.padding_mask = kwargs.get("attention_mask")

    return hook
