"""A dense T5 from a shape, and functions for both T5 and Switch models."""

from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration

from distill.config import ModelConfig
from distill.models.header import is_product_matrix
from distill.models.save import set_tie_word_embeddings

Model = TypeVar("Model", bound=PreTrainedModel)


def build_dense(model: ModelConfig, vocab_size: int, *, pad: int, eos: int, seed: int) -> T5ForConditionalGeneration:
    """A randomly initialised T5 of this shape: the baseline. The weights are a function of ``seed``.

    Args:
        model: the shape.
        vocab_size: rows of the embedding.
        pad, eos: token ids.
    """
    shared = common_config(model, vocab_size, pad=pad, eos=eos)
    return new_t5(T5Config(**shared, feed_forward_proj=model.feed_forward), seed=seed)


def common_config(model: ModelConfig, vocab_size: int, *, pad: int, eos: int) -> dict[str, Any]:
    """The values that the configs of a T5 and a Switch model of this shape share, with transformers' names."""
    return {
        **model.model_dump(include={"d_model", "d_ff", "d_kv", "num_heads", "num_layers", "tie_word_embeddings"}),
        "vocab_size": vocab_size,
        "num_decoder_layers": model.num_layers,
        "dropout_rate": model.dropout,
        "pad_token_id": pad,
        "eos_token_id": eos,
        "decoder_start_token_id": pad,
    }


def new_t5(config: T5Config, *, seed: int) -> T5ForConditionalGeneration:
    """A randomly initialised T5, untied if ``config`` does not scale the decoder's output.

    transformers 5 ties every T5 that it builds, and marks untied ones only by ``scale_decoder_outputs``. The config of
    the returned model has ``tie_word_embeddings`` set too, so that all readers understand its config.json.
    """
    torch.manual_seed(seed)
    t5 = T5ForConditionalGeneration(config)
    if not config.scale_decoder_outputs:
        t5.lm_head.weight = nn.Parameter(torch.randn(config.vocab_size, config.d_model) * config.d_model**-0.5)
    set_tie_word_embeddings(config)  # after construction: before it, transformers would not share the embeddings
    return t5


def place(model: Model, device: torch.device) -> Model:
    """Move ``model`` to ``device`` in place, with the attention implementation that is fastest there.

    T5's position bias prevents transformers' sdpa attention from using the fused CPU kernel. Its fallback is slower
    than eager attention.
    """
    if device.type == "cpu":
        model.set_attn_implementation("eager")
    model.to(device)  # type: ignore[arg-type]  # by the annotation of its decorator, ``to`` is not a method
    return model


def freeze(model: Model, dtype: torch.dtype) -> Model:
    """Prepare ``model`` for inference in place: eval mode, no gradients, and the matrices of its products in ``dtype``.

    All other parameters keep their dtype; see ``distill.models.header.is_product_matrix``.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        if is_product_matrix(name, parameter.ndim):
            parameter.data = parameter.data.to(dtype)
    return model.eval()


def count_parameters(model: nn.Module) -> int:
    """Number of parameters of a model; tied parameters count once."""
    return sum(parameter.numel() for parameter in model.parameters())
