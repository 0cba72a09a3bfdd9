"""A dense T5 from a shape, and the hidden states and head of any T5 or Switch model.

B examples, S input tokens, T target tokens, N = B x T, D d_model, V vocabulary.
"""

import torch
from torch import nn
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration

from distill.config import ModelConfig


def build_dense(model: ModelConfig, vocab_size: int, *, pad: int, eos: int, seed: int) -> T5ForConditionalGeneration:
    """A randomly initialised T5 of this shape: the baseline. Weights are a function of ``seed``."""
    config = T5Config(
        vocab_size=vocab_size,
        d_model=model.d_model,
        d_ff=model.d_ff,
        d_kv=model.d_kv,
        num_heads=model.num_heads,
        num_layers=model.num_layers,
        num_decoder_layers=model.num_layers,
        feed_forward_proj=model.feed_forward,
        dropout_rate=model.dropout,
        tie_word_embeddings=model.tie_word_embeddings,
        pad_token_id=pad,
        eos_token_id=eos,
        decoder_start_token_id=pad,
    )
    return new_t5(config, seed=seed)


def new_t5(config: T5Config, *, seed: int) -> T5ForConditionalGeneration:
    """A randomly initialised T5, with a head of its own where ``config`` does not scale the decoder's output.

    transformers ties every T5 it builds and marks the untied ones by ``scale_decoder_outputs`` alone.
    """
    torch.manual_seed(seed)
    t5 = T5ForConditionalGeneration(config)
    if not config.scale_decoder_outputs:
        t5.lm_head.weight = nn.Parameter(torch.randn(config.vocab_size, config.d_model) * config.d_model**-0.5)
    return t5


def embeddings(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The modules whose weight is the shared embedding, or a weight of their own where the model is untied."""
    return {
        "encoder.embed_tokens": model.encoder.embed_tokens,
        "decoder.embed_tokens": model.decoder.embed_tokens,
        "lm_head": model.lm_head,
    }


def hidden_states(
    model: PreTrainedModel, input_ids: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run encoder and decoder; stop before the head.

    Args:
        model: a T5 or Switch model for conditional generation.
        input_ids: [B, S], without padding.
        labels: [B, T]; the decoder reads them shifted right.

    Returns:
        hidden [N, D], already scaled by D**-0.5 where the model does that, and head [V, D], so that
        ``hidden @ head.T`` are the logits.
    """
    encoded = model.encoder(input_ids=input_ids).last_hidden_state
    decoder_ids = model.prepare_decoder_input_ids_from_labels(labels)
    hidden = model.decoder(input_ids=decoder_ids, encoder_hidden_states=encoded, use_cache=False).last_hidden_state
    # T5 says so in one key; Switch models scale exactly when the head is tied.
    if getattr(model.config, "scale_decoder_outputs", model.config.tie_word_embeddings):
        hidden = hidden * model.config.d_model**-0.5
    return hidden.flatten(0, 1), model.lm_head.weight


def place(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Move to ``device``, with the attention that is fastest there.

    T5's position bias keeps transformers' sdpa attention off the fused CPU kernel, and what it falls back to is
    slower than the plain products.
    """
    if device.type == "cpu":
        model.set_attn_implementation("eager")
    return model.to(device)


def count_parameters(model: nn.Module) -> int:
    """Parameters of a model, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
