"""A dense T5 from a shape, and what T5 and Switch models have in common."""

from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration

from distill.config import ModelConfig
from distill.models.save import set_tie_word_embeddings

Model = TypeVar("Model", bound=PreTrainedModel)

# The weights that are the shared embedding, or weights of their own where the model is untied.
EMBEDDINGS = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")


def build_dense(model: ModelConfig, vocab_size: int, *, pad: int, eos: int, seed: int) -> T5ForConditionalGeneration:
    """A randomly initialised T5 of this shape: the baseline. Weights are a function of ``seed``."""
    shared = common_config(model, vocab_size, pad=pad, eos=eos)
    return new_t5(T5Config(**shared, feed_forward_proj=model.feed_forward), seed=seed)


def common_config(model: ModelConfig, vocab_size: int, *, pad: int, eos: int) -> dict[str, Any]:
    """The values that the configs of a T5 and of a Switch model of this shape share, by transformers' names."""
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
    """A randomly initialised T5, with a head of its own where ``config`` does not scale the decoder's output.

    transformers ties every T5 it builds and marks the untied ones by ``scale_decoder_outputs`` alone. The config of the
    T5 says both, so that ``save_pretrained`` writes what every reader understands.
    """
    torch.manual_seed(seed)
    t5 = T5ForConditionalGeneration(config)
    if not config.scale_decoder_outputs:
        t5.lm_head.weight = nn.Parameter(torch.randn(config.vocab_size, config.d_model) * config.d_model**-0.5)
    set_tie_word_embeddings(config)  # not before: transformers would share no embedding at all
    return t5


def place(model: Model, device: torch.device) -> Model:
    """Move to ``device``, with the attention that is fastest there.

    T5's position bias keeps transformers' sdpa attention off the fused CPU kernel, and what it falls back to is
    slower than the plain products.
    """
    if device.type == "cpu":
        model.set_attn_implementation("eager")
    model.to(device)  # type: ignore[arg-type]  # by the annotation of its decorator, ``to`` is not a method
    return model


def freeze(model: Model, dtype: torch.dtype) -> Model:
    """For inference alone: eval mode, no gradients, and the matrices of its products in ``dtype`` for good, in place.

    What is read in float32 whatever the precision keeps its weights: embeddings, routers, norms, position biases.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        if parameter.ndim > 1 and not any(kept in name for kept in ("shared", "embed", "router", "attention_bias")):
            parameter.data = parameter.data.to(dtype)
    return model.eval()


def count_parameters(model: nn.Module) -> int:
    """Parameters of a model, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
