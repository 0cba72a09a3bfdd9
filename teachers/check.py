"""A teacher's directory before it is loaded: everything that can be wrong with it, said at once. Needs no torch."""

from typing import Any

from distill.errors import UserError
from distill.models.directory import Shapes, check_weights, dimension, ffn_shapes, read_model_config, seq2seq_shapes
from distill.models.header import POSITIONS, Header, read_header

# What transformers' SwitchTransformersConfig has where config.json says nothing.
_DEFAULTS = {"vocab_size": 32128, "d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12}
_DEFAULTS |= {"num_experts": 8, "num_sparse_encoder_layers": 3, "num_sparse_decoder_layers": 3, **POSITIONS}
ACTIVATIONS = ("relu", "gelu", "gelu_new", "gated-gelu", "gated-relu", "gated-silu", "silu")
# Saved by some beside ``shared``, which they repeat; the bias is one that T5 once had and never read.
_ALLOWED = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
_ALLOWED += ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)


def check_teacher(source: str, *, finite: bool = True) -> Header:
    """Read the config of a Switch model, and of a directory the names, shapes and values of its tensors.

    Args:
        source: a directory, or a name on the hub that may be pinned (``NAME@REVISION``).
        finite: whether to read the values of the tensors.

    Returns:
        What its student will be, and its number of experts.

    Raises:
        UserError: it cannot be a teacher.
    """
    what = f"teacher {source!r}"
    config = read_model_config(source, what)
    check_teacher_config(config, what)
    shapes = teacher_shapes(config, what)
    if not any("router" in name for name in shapes):
        raise UserError(f"{what} has no Switch layer (encoder_sparse_step, decoder_sparse_step); name a sparse model")
    tied = bool(config.get("tie_word_embeddings", True))
    if not tied:
        shapes["lm_head.weight"] = shapes["shared.weight"]
    experts = dimension(config, "num_experts", _DEFAULTS["num_experts"], what)
    activation, gated = _activation(config)
    proj = f"gated-{activation.replace('gelu_new', 'gelu')}" if gated else activation
    config = {"num_decoder_layers": 12, **config}
    if config.get("decoder_start_token_id") is None:  # as load_teacher has it
        config["decoder_start_token_id"] = config.get("pad_token_id", 0)
    header = read_header(config, _DEFAULTS, what, feed_forward=proj, tied=tied, scaled=tied, experts=experts)
    check_weights(source, shapes, what, allowed=_ALLOWED, finite=finite)
    return header


def check_teacher_config(config: dict[str, Any], what: str) -> None:
    """Whether a config is of a Switch model of the paper's kind.

    Raises:
        UserError: it is not.
    """
    if (kind := config.get("model_type")) != "switch_transformers":
        raise UserError(f"{what} is a {kind} model; a Switch Transformer is needed")
    if config.get("is_encoder_decoder", True) is not True:
        raise UserError(f"{what} is a decoder alone (is_encoder_decoder); a whole Switch Transformer is needed")
    if config.get("router_bias"):
        raise UserError(f"{what} has a router with a bias, which the paper's router has not")
    if (activation := config.get("dense_act_fn", "relu")) not in ACTIVATIONS:
        raise UserError(f"{what} has dense_act_fn {activation!r:.40}; known are {', '.join(ACTIVATIONS)}")


def teacher_shapes(config: dict[str, Any], what: str) -> Shapes:
    """Name and shape of the tensors that transformers saves of a Switch model, without tied embeddings.

    Raises:
        UserError: a size in its config is no size.
    """
    config = {"num_decoder_layers": 12, **config}
    width = dimension(config, "d_model", _DEFAULTS["d_model"], what)
    experts = dimension(config, "num_experts", _DEFAULTS["num_experts"], what)
    one = ffn_shapes(config, _DEFAULTS, what, gated=_activation(config)[1])

    def ffn(stack: str, block: int) -> Shapes:
        if not _is_sparse(config, stack, block, what):
            return {f"mlp.{name}": shape for name, shape in one.items()}
        every = {f"mlp.experts.expert_{e}.{name}": shape for e in range(experts) for name, shape in one.items()}
        return {"mlp.router.classifier": (experts, width), **every}

    return seq2seq_shapes(config, _DEFAULTS, ffn, what)


def _activation(config: dict[str, Any]) -> tuple[str, bool]:
    """The function of the FFNs, and whether they are gated, as ``teachers.model.read_teacher_config`` has it."""
    names = (str(config.get("dense_act_fn", "relu")), str(config.get("feed_forward_proj") or ""))
    gated = bool(config.get("is_gated_act")) or any(name.startswith("gated-") for name in names)
    return names[0].removeprefix("gated-"), gated


def _is_sparse(config: dict[str, Any], stack: str, block: int, what: str) -> bool:
    """As transformers decides: every step-th block from the second on, where its step is not given otherwise."""
    layers = dimension(config, "num_layers", _DEFAULTS["num_layers"], what)
    if stack == "decoder":
        layers = dimension(config, "num_decoder_layers", layers, what)
    sparse, step = config.get(f"num_sparse_{stack}_layers", 3), config.get(f"{stack}_sparse_step")
    if step is None:
        step = layers // sparse if type(sparse) is int and sparse > 0 else layers
    if type(step) is not int or step < 0:
        raise UserError(f"{what} has {stack}_sparse_step {step!r:.40} in its config.json; it must be a number")
    return step > 0 and (block % step == 1 or step == 1)
