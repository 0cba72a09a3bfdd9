"""Parameters and floating-point operations of a model, computed from its shape. Does not import torch."""

from typing import Any

from distill.config import ModelConfig

_BUCKETS = 32  # of T5's relative position bias


def forward_flops(shape: dict[str, Any], inputs: float, targets: float) -> float:
    """Floating-point operations of one example's forward pass.

    Each multiply-add of the products with weights, of attention and of the head counts as two operations. Element-wise
    operations do not count. A Switch layer counts as one FFN and a router, because it routes each token to one expert
    (section 2.1 of the paper). A training step takes three times as many operations.

    Args:
        shape: the values in the ``config.json`` of a T5 or Switch model.
        inputs, targets: numbers of tokens in the encoder and in the decoder, or their means.
    """
    width, attended = shape["d_model"], shape["num_heads"] * shape["d_kv"]
    ffn = (3 if shape.get("is_gated_act") else 2) * width * shape["d_ff"]
    encoder = inputs * (4 * width * attended + ffn) + 2 * inputs * inputs * attended
    decoder = targets * (6 * width * attended + ffn) + 2 * targets * (targets + inputs) * attended
    decoder += inputs * 2 * width * attended  # keys and values of the encoder's output
    routed = inputs * shape.get("num_sparse_encoder_layers", 0) + targets * shape.get("num_sparse_decoder_layers", 0)
    routers = routed * width * shape.get("num_experts", 0)
    layers = shape["num_layers"] * encoder + shape["num_decoder_layers"] * decoder
    return 2.0 * (layers + routers + targets * width * shape["vocab_size"])


def num_parameters(
    model: ModelConfig, vocabulary_size: int, experts: int = 0, *, num_decoder_layers: int | None = None
) -> int:
    """Number of parameters of a dense T5 of this shape, or of a Switch teacher; tied parameters count once.

    Args:
        model: the shape.
        vocabulary_size: rows of the embedding.
        experts: number of experts in each sparse layer of a teacher; 0 for a dense model.
        num_decoder_layers: of a dense model, if not ``model.num_layers``.
    """
    encoder, decoder = model.num_layers, num_decoder_layers or model.num_layers
    ffn = (3 if model.feed_forward == "gated-gelu" else 2) * model.d_model * model.d_ff
    attention = 4 * model.d_model * model.num_heads * model.d_kv
    norms = 2 + 2 * encoder + 3 * decoder  # one before each of 2 + 3 sublayers, and one at each end
    biases = 2 * _BUCKETS * model.num_heads
    embeddings = (1 if model.tie_word_embeddings else 2) * vocabulary_size * model.d_model
    dense = embeddings + biases + norms * model.d_model + encoder * (attention + ffn) + decoder * (2 * attention + ffn)
    sparse = 2 * (model.num_layers // model.sparse_every) if experts else 0
    return dense + sparse * (experts * (ffn + model.d_model) - ffn)
