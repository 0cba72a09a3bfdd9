"""The memory that the training of a dense T5 needs, computed from its shape. Does not import torch."""

from distill.config import TrainingConfig
from distill.models.header import Shape
from distill.training.precision import Precision

_LOGITS = 2**25  # at a time, as in distill.loss
# Values per unit of an FFN that are saved; transformers computes gelu_new, also of gated-gelu, in several operations.
_FFN_VALUES = {"relu": 1, "gelu": 2, "silu": 2, "gelu_new": 5, "gated-gelu": 7}
_GATED_FFN_VALUES = 4  # of all other activations
_BYTES_PER_LOGIT = 16  # float32 logits, probabilities and gradient, and the product in the dtype of the computation


def training_bytes(
    shape: Shape,
    parameters: int,
    training: TrainingConfig,
    precision: Precision,
    *,
    examples: int,
    inputs: int,
    targets: int,
) -> int:
    """An estimate of the bytes of weights, gradients, optimizer state and activations of one process.

    Args:
        shape: of the T5.
        parameters: number of its parameters.
        training: the optimizer.
        precision: of the matrix products.
        examples: per forward pass.
        inputs, targets: tokens per example.
    """
    # Weights and optimizer state in float32 are what a checkpoint has.
    fixed = training.checkpoint_bytes(parameters) + 4 * parameters
    logits = min(_LOGITS, examples * targets * int(shape["vocab_size"])) * _BYTES_PER_LOGIT
    saved = saved_bytes(shape, precision, examples=examples, inputs=inputs, targets=targets)
    blocks = int(shape["num_layers"]) + int(shape["num_decoder_layers"])
    return fixed + saved + logits + 2 * saved // blocks  # the gradients of one block's activations


def saved_bytes(shape: Shape, precision: Precision, *, examples: int, inputs: int, targets: int) -> int:
    """Bytes that a forward pass (``distill.models.t5_forward.hidden_states``) saves for the backward pass.

    Arguments are those of ``training_bytes``. Dropout is not counted.
    """
    width = 2 if precision == "bfloat16" else 4
    size, inner = int(shape["d_model"]), int(shape["d_ff"])
    heads, attended = int(shape["num_heads"]), int(shape["num_heads"]) * int(shape["d_kv"])
    activation = str(shape["feed_forward_proj"])
    ffn_values = _FFN_VALUES.get(activation, _GATED_FFN_VALUES)
    S, T = examples * inputs, examples * targets

    def norm(tokens: int) -> int:
        return tokens * size * (4 + width)  # its input in float32 and its output

    def attention(queries: int, keys: int, length: int) -> int:
        return norm(queries) + width * (2 * queries * attended + 2 * keys * attended + queries * length * heads)

    def ffn(tokens: int) -> int:
        return norm(tokens) + width * tokens * inner * ffn_values

    encoder = attention(S, S, inputs) + ffn(S)
    decoder = attention(T, T, targets) + attention(T, S, inputs) + ffn(T)
    total = int(shape["num_layers"]) * encoder + int(shape["num_decoder_layers"]) * decoder
    return total + norm(S) + norm(T)
