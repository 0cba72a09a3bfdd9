"""Floating-point operations of a model, counted from its shape."""

from typing import Any


def forward_flops(shape: dict[str, Any], inputs: int, targets: int, *, experts: int = 1) -> float:
    """Of one example's forward pass: two for each multiply-add of all products with weights, of attention and head.

    A Switch layer counts as one FFN and its router: each token goes to one expert (section 2.1 of the paper), unless
    told otherwise. Nothing element-wise is counted. A training step takes three times as many.

    Args:
        shape: the values of a ``config.json`` of T5 or Switch.
        inputs, targets: tokens in the encoder and in the decoder.
        experts: that each token goes to.
    """
    width, attended = shape["d_model"], shape["num_heads"] * shape["d_kv"]
    ffn = (3 if shape.get("is_gated_act") else 2) * width * shape["d_ff"]
    encoder = inputs * (4 * width * attended + ffn) + 2 * inputs * inputs * attended
    decoder = targets * (6 * width * attended + ffn) + 2 * targets * (targets + inputs) * attended
    decoder += inputs * 2 * width * attended  # keys and values of what the encoder wrote
    routed = inputs * shape.get("num_sparse_encoder_layers", 0) + targets * shape.get("num_sparse_decoder_layers", 0)
    sparse = routed * (width * shape.get("num_experts", 0) + (experts - 1) * ffn)
    layers = shape["num_layers"] * encoder + shape["num_decoder_layers"] * decoder
    return 2.0 * (layers + sparse + targets * width * shape["vocab_size"])
