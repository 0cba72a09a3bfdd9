"""A dense T5's directory before it is loaded: everything that can be wrong with it, said at once. Needs no torch."""

from typing import Any

from distill.errors import UserError
from distill.models.directory import check_weights, ffn_shapes, read_model_config, seq2seq_shapes
from distill.models.header import POSITIONS, Header, read_header

# What transformers' T5Config has where config.json says nothing.
_DEFAULTS = {"vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8}
_DEFAULTS |= POSITIONS
_SAME = {"gated-gelu_new": "gated-gelu"}  # transformers computes both by gelu_new


def check_dense(source: str, what: str, *, finite: bool = True) -> Header:
    """Read the config of a T5, and of a directory the names, shapes and values of its tensors.

    Args:
        source: a directory, or a name on the hub that may be pinned (``NAME@REVISION``).
        what: names the model in messages.
        finite: whether to read the values of the tensors.

    Returns:
        What it is.

    Raises:
        UserError: it cannot be loaded as one.
    """
    config = read_model_config(source, what)
    if (kind := config.get("model_type")) != "t5":
        raise UserError(f"{what} is a {kind} model; a dense T5 is needed")
    named = str(config.get("feed_forward_proj", "relu"))
    matrices = ffn_shapes(config, _DEFAULTS, what, gated=named.startswith("gated-"))
    ffn = {f"DenseReluDense.{name}": size for name, size in matrices.items()}
    shapes = seq2seq_shapes(config, _DEFAULTS, lambda *_: ffn, what)
    # T5's checkpoints hold tied and once used tensors besides, which transformers passes over.
    found = check_weights(source, shapes, what, allowed=None, finite=finite)
    # transformers gives a T5 that does not scale a head of its own where its files have one, and else ties it.
    scaled = bool(config.get("scale_decoder_outputs", config.get("tie_word_embeddings") is not False))
    tied = scaled or (found is not None and "lm_head.weight" not in found)
    _check_activation(config, named, what)
    return read_header(config, _DEFAULTS, what, feed_forward=_SAME.get(named, named), tied=tied, scaled=scaled)


def _check_activation(config: dict[str, Any], named: str, what: str) -> None:
    """Whether what transformers writes beside ``feed_forward_proj``, and reads instead of it, says the same."""
    gated, activation = named.startswith("gated-"), named.removeprefix("gated-")
    same = {activation, "gelu", "gelu_new"} if gated and activation.startswith("gelu") else {activation}
    if bool(config.get("is_gated_act", gated)) != gated or config.get("dense_act_fn", activation) not in same:
        beside = f"dense_act_fn {config.get('dense_act_fn')!r:.40} and is_gated_act {config.get('is_gated_act')!r:.40}"
        raise UserError(f"{what} has feed_forward_proj {named!r:.40} in its config.json, but {beside}; correct it")
