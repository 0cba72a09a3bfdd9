"""The shape and token ids of a dense T5, or of the student of a Switch model, from the config alone.

Two dense models of equal shape differ only in their training, so they can be compared. Does not import torch.
"""

from typing import Any, NamedTuple

from distill.config import ModelConfig
from distill.errors import UserError
from distill.models.directory import dimension

Shape = dict[str, int | str | bool]  # by the names of transformers' T5Config

# These are the shared embedding in a tied model, and may be separate weights in an untied one.
EMBEDDINGS = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")

# Defaults of T5's relative position bias, and of the token ids that generation needs.
POSITIONS = {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128}
_TOKEN_IDS = {"pad": 0, "eos": 1, "decoder_start": None}
_SIZES = ("vocab_size", "d_model", "d_ff", "d_kv", "num_heads", "num_layers", *POSITIONS)

# Parts of the names of matrices that the forward pass always reads in float32.
_ALWAYS_FLOAT32 = ("shared", "embed", "router", "attention_bias")


class Header(NamedTuple):
    """The shape and token ids of a dense T5, or of the student of a Switch model."""

    shape: Shape
    vocab_size: int
    pad: int  # token ids
    eos: int
    experts: int | None = None  # of the Switch model
    differences: tuple[str, ...] = ()  # sentences on its config.json and its tensors


def read_header(
    config: dict[str, Any],
    defaults: dict[str, int],
    description: str,
    *,
    feed_forward: str,
    tied: bool,
    scaled: bool,
    experts: int | None = None,
) -> Header:
    """The header of a model, from its config.

    Args:
        config: the values in its config.json.
        defaults: sizes that ``config`` may omit.
        description: names the model in messages.
        feed_forward: activation of its FFNs, with the prefix ``gated-`` if they are gated.
        tied: whether its head is the embedding.
        scaled: whether its last hidden states are scaled by d_model**-0.5.
        experts: number of experts of a Switch model.

    Raises:
        UserError: a size, a token id or a rate in the config is not valid.
    """
    sizes = {name: dimension(config, name, defaults[name], description) for name in _SIZES}
    sizes["num_decoder_layers"] = dimension(config, "num_decoder_layers", sizes["num_layers"], description)
    shape: Shape = {**sizes, "feed_forward_proj": feed_forward}
    shape |= {"tie_word_embeddings": tied, "scale_decoder_outputs": scaled}
    for name in ("dropout_rate", "layer_norm_epsilon"):
        value = config.get(name, 0.0)
        if type(value) not in (int, float) or not 0 <= value < 1:  # also false for NaN
            raise UserError(
                f"{description} has {name} {value!r:.40} in its config.json; it must be a number from 0 to 1"
            )
    pad, eos, _ = (_token_id(config, name, sizes["vocab_size"], description) for name in _TOKEN_IDS)
    return Header(shape, sizes["vocab_size"], pad, eos, experts)


def shape_of(model: ModelConfig, vocab_size: int | None) -> Shape:
    """The shape of a dense model of this config; without the vocabulary size if ``vocab_size`` is None."""
    shape: Shape = model.model_dump(include={"d_model", "d_ff", "d_kv", "num_heads", "num_layers"})
    shape |= {"num_decoder_layers": model.num_layers, "feed_forward_proj": model.feed_forward, **POSITIONS}
    shape |= dict.fromkeys(("tie_word_embeddings", "scale_decoder_outputs"), model.tie_word_embeddings)
    return shape if vocab_size is None else {"vocab_size": vocab_size, **shape}


def is_product_matrix(name: str, dimensions: int) -> bool:
    """Whether a parameter is used in matrix products in the dtype of the computation.

    Embeddings, routers, norms and position biases are not: the forward pass always reads them in float32.
    """
    return dimensions > 1 and not any(kept in name for kept in _ALWAYS_FLOAT32)


def differences(one: Shape, other: Shape) -> list[str]:
    """Texts such as ``d_ff 64 and 128``, one for each entry of both shapes that differs."""
    common = [name for name in one if name in other]
    return [f"{name} {one[name]} and {other[name]}" for name in common if one[name] != other[name]]


def _token_id(config: dict[str, Any], name: str, vocabulary_size: int, description: str) -> int:
    value = config.get(f"{name}_token_id", _TOKEN_IDS[name])
    if type(value) is not int or not 0 <= value < vocabulary_size:
        raise UserError(
            f"{description} has {name}_token_id {value!r:.40} in its config.json; it must be the id of one of "
            f"{vocabulary_size} tokens"
        )
    return value
