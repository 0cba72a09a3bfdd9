"""Checks of a dense T5's directory before the model is loaded. Needs no torch."""

from typing import Any

from distill.errors import UserError
from distill.models.directory import check_weights, read_model_config
from distill.models.header import POSITIONS, Header, read_header

# The defaults of transformers' T5Config for keys that config.json leaves out.
_DEFAULTS = {"vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8}
_DEFAULTS |= POSITIONS
_SAME_ACTIVATION = {"gated-gelu_new": "gated-gelu"}  # transformers computes both with gelu_new


def check_dense(source: str, description: str, *, finite: bool = True) -> Header:
    """Check the config of a T5 and, if its weights are on this disk, their files and values.

    Args:
        source: a directory, or a name on the hub that may be pinned (``NAME@REVISION``).
        description: the name of the model in messages.
        finite: whether to check that the values of the tensors are finite.

    Returns:
        The shape of the T5 and the ids of its special tokens.

    Raises:
        UserError: ``source`` is not a dense T5, or a check of its config, files or values fails.
    """
    config = read_model_config(source, description)
    if (kind := config.get("model_type")) != "t5":
        raise UserError(f"{description} is a {kind} model; a dense T5 is needed")
    feed_forward = str(config.get("feed_forward_proj", "relu"))
    found = check_weights(source, description, finite=finite)
    # If the output is not scaled, transformers loads an untied head from the files, or ties it if they hold none.
    scaled = bool(config.get("scale_decoder_outputs", config.get("tie_word_embeddings") is not False))
    tied = scaled or (found is not None and "lm_head.weight" not in found)
    _check_activation(config, feed_forward, description)
    feed_forward = _SAME_ACTIVATION.get(feed_forward, feed_forward)
    return read_header(config, _DEFAULTS, description, feed_forward=feed_forward, tied=tied, scaled=scaled)


def _check_activation(config: dict[str, Any], feed_forward: str, description: str) -> None:
    """Check that ``feed_forward_proj`` agrees with the keys that override it in transformers."""
    gated, activation = feed_forward.startswith("gated-"), feed_forward.removeprefix("gated-")
    same = {activation, "gelu", "gelu_new"} if gated and activation.startswith("gelu") else {activation}
    if bool(config.get("is_gated_act", gated)) != gated or config.get("dense_act_fn", activation) not in same:
        others = f"dense_act_fn {config.get('dense_act_fn')!r:.40} and is_gated_act {config.get('is_gated_act')!r:.40}"
        raise UserError(
            f"{description} has feed_forward_proj {feed_forward!r:.40} in its config.json, but {others}; "
            "make them agree"
        )
