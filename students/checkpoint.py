"""A dense T5's directory before it is loaded: everything that can be wrong with it, said at once. Needs no torch."""

from distill.errors import UserError
from distill.model_files import check_weights, ffn_shapes, read_model_config, seq2seq_shapes

# What transformers' T5Config has where config.json says nothing.
_DEFAULTS = {"vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8}
_DEFAULTS |= {"relative_attention_num_buckets": 32}


def check_dense(source: str, what: str) -> int:
    """Read the config of a T5, and of a directory the names, shapes and values of its tensors.

    Args:
        source: a directory, or a name on the hub that may be pinned (``NAME@REVISION``).
        what: names the model in messages.

    Returns:
        Its words.

    Raises:
        UserError: it cannot be loaded as one.
    """
    config = read_model_config(source, what)
    if (kind := config.get("model_type")) != "t5":
        raise UserError(f"{what} is a {kind} model; a dense T5 is needed")
    gated = str(config.get("feed_forward_proj", "relu")).startswith("gated-")
    ffn = {f"DenseReluDense.{name}": size for name, size in ffn_shapes(config, _DEFAULTS, what, gated=gated).items()}
    shapes = seq2seq_shapes(config, _DEFAULTS, lambda *_: ffn, what)
    # T5's checkpoints hold tied and once used tensors besides, which transformers passes over.
    check_weights(source, shapes, what, allowed=None)
    return shapes["shared.weight"][0]
