"""A dense T5's directory before it is loaded: everything that can be wrong with it, said at once. Needs no torch."""

from pathlib import Path

from distill.errors import UserError
from distill.model_files import (
    Shapes,
    check_finite,
    check_shapes,
    dimension,
    read_model_config,
    read_weights,
    seq2seq_shapes,
)

# What transformers' T5Config has where config.json says nothing.
_DEFAULTS = {"vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8}
_DEFAULTS |= {"relative_attention_num_buckets": 32}


def check_dense(source: str, what: str) -> int:
    """Read the config of a T5, and of a directory the names, shapes and values of its tensors.

    Args:
        source: a directory or a name on the hub.
        what: names the model in messages.

    Returns:
        Its words.

    Raises:
        UserError: it cannot be loaded as one.
    """
    config = read_model_config(source, what)
    if (kind := config.get("model_type")) != "t5":
        raise UserError(f"{what} is a {kind} model; a dense T5 is needed")
    if Path(source).is_dir():
        width, inner = (dimension(config, name, _DEFAULTS[name], what) for name in ("d_model", "d_ff"))
        gated = str(config.get("feed_forward_proj", "relu")).startswith("gated-")
        ffn: Shapes = {"wo": (width, inner), **dict.fromkeys(("wi_0", "wi_1") if gated else ("wi",), (inner, width))}
        dense = {f"DenseReluDense.{name}": shape for name, shape in ffn.items()}
        weights = read_weights(Path(source), what)
        # T5's checkpoints hold tied and once used tensors besides, which transformers passes over.
        check_shapes(weights.shapes, seq2seq_shapes(config, _DEFAULTS, lambda *_: dense, what), what, allowed=None)
        check_finite(weights.files, what)
    return dimension(config, "vocab_size", _DEFAULTS["vocab_size"], what)
