"""A fast forward pass of T5 and Switch models, on the weights of transformers' modules.

It computes the same function as transformers, with operations merged: under autocast each weight is cast once; query,
key and value are one product; the position bias is added in place in the dtype of the scores; normalisation is one
operation forward and one backward. Residuals and normalisation are in float32.

Padding is at the end: the model's pad id in inputs, -100 in labels. No token attends to it, and Switch layers neither
route nor count it. The decoder needs no mask of its own for that, because its attention is causal. A batch without
padding is computed without masks.

B examples, S input tokens, T target tokens, D d_model, H heads, K d_kv.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.models.t5.modeling_t5 import T5Attention

from distill.data.examples import IGNORE_INDEX
from distill.models.t5_operations import diagonals, linear, rms_norm

CALL = "call_with_weights"  # the method of a module of which each process holds a shard
Result = TypeVar("Result")


class Encoded(NamedTuple):
    """The output of the encoder."""

    hidden: torch.Tensor  # [B, S, D], in the dtype of the products; values at padding are unspecified
    mask: torch.Tensor | None  # [B, S], False for padding; None if there is none


def hidden_states(
    model: PreTrainedModel, input_ids: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run encoder and decoder, without the product with the head.

    Args:
        model: a T5 or Switch model for conditional generation, in training or eval mode.
        input_ids: [B, S]; the model's pad id at the end of a row is padding.
        labels: [B, T]; the decoder reads them shifted right. -100 at the end of a row is padding.

    Returns:
        hidden [B * T, D] and head [vocabulary, D], so that ``hidden @ head.T`` are the logits: hidden includes the
        factor D**-0.5 of models that have it. hidden has the dtype of autocast if it is on, else that of the head. Its
        values at padding are unspecified.
    """
    return call(model, _hidden_states, model, input_ids, labels)


def _hidden_states(
    model: PreTrainedModel, input_ids: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    mask = token_mask(labels, IGNORE_INDEX)  # before the encoder, because it waits for the device
    encoded = encode(model, input_ids)
    dtype = compute_dtype(model.lm_head.weight)
    with torch.autocast(input_ids.device.type, enabled=False):
        # The method belongs to subclasses of PreTrainedModel.
        decoder_ids = model.prepare_decoder_input_ids_from_labels(labels)  # type: ignore[operator]
        hidden = _stack(model.decoder, decoder_ids, mask, encoded, dtype)
        return scaled(model, hidden).flatten(0, 1), model.lm_head.weight


def encode(model: PreTrainedModel, input_ids: torch.Tensor) -> Encoded:
    """Run the encoder alone; the arguments are those of ``hidden_states``."""
    dtype, mask = compute_dtype(model.lm_head.weight), token_mask(input_ids, model.config.pad_token_id)
    with torch.autocast(input_ids.device.type, enabled=False):
        return Encoded(_stack(model.encoder, input_ids, mask, None, dtype), mask)


def token_mask(ids: torch.Tensor, padding: int) -> torch.Tensor | None:
    """False where an id of ``ids`` is ``padding``; None if none is."""
    mask = ids != padding
    return None if mask.all() else mask


def scaled(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """The decoder's hidden states, times D**-0.5 for models that have this factor."""
    # T5 has a config key for it; Switch models scale if and only if the head is tied.
    if getattr(model.config, "scale_decoder_outputs", model.config.tie_word_embeddings):
        return hidden * model.config.d_model**-0.5
    return hidden


def is_known(model: Any) -> bool:
    """Whether ``hidden_states`` supports a model: a T5, or a Switch model whose sparse layers are SwitchLayers."""
    try:
        last = [block.layer[-1] for stack in (model.encoder, model.decoder) for block in stack.block]
        return all(hasattr(layer, "experts") or hasattr(_dense(layer), "act") for layer in last)
    except AttributeError:
        return False


def compute_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The dtype of autocast if it is on, else that of ``tensor``."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def _stack(
    stack: Any,  # transformers does not annotate the attributes of stacks and blocks
    ids_BS: torch.Tensor,
    mask_BS: torch.Tensor | None,
    encoded: Encoded | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Run the encoder, or the decoder if ``encoded`` is given: ids -> normalised hidden states [B, S, D]."""
    x = embed(stack, ids_BS)
    bias = position_bias(stack, ids_BS.shape[1], dtype)
    for block in stack.block:
        x = call(block, run_block, stack, block, x, mask_BS, encoded, bias, dtype)
    return final_norm(stack, x, dtype)


def call(module: nn.Module, function: Callable[..., Result], *arguments: Any) -> Result:
    """``function(*arguments)``, which reads the weights of ``module``.

    If ``distill.training.sharding`` has given the module a method CALL, it gathers the weights for the function.
    """
    gathered = getattr(module, CALL, None)
    return function(*arguments) if gathered is None else gathered(function, *arguments)


def embed(stack: Any, ids_BS: torch.Tensor) -> torch.Tensor:
    """The input of a stack's first block: ids -> [B, S, D] float32."""
    drop = _dropout_rate(stack)
    return F.dropout(F.embedding(ids_BS, stack.embed_tokens.weight).float(), drop, drop > 0)


def run_block(
    stack: Any,
    block: Any,
    x: torch.Tensor,
    mask: torch.Tensor | None,
    encoded: Encoded | None,
    bias: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Run one block of a stack.

    Args:
        stack, block: modules of transformers.
        x: [B, S or T, D] float32, input of the block.
        mask: [B, S or T], False for padding; None if there is none.
        encoded: the output of the encoder, for a block of the decoder; None for one of the encoder.
        bias: the result of ``position_bias``.
        dtype: of the products.

    Returns:
        The input of the next block or of the final normalisation, [B, S or T, D] float32.
    """
    drop = _dropout_rate(stack)
    attention = block.layer[0]
    normed = rms_norm(x, attention.layer_norm, dtype)
    keys = mask if encoded is None else None  # in the decoder the bias excludes all that follows
    x = x + F.dropout(_attention(attention.SelfAttention, normed, None, bias, keys, drop), drop, drop > 0)
    if encoded is not None:
        attention = block.layer[1]
        normed = rms_norm(x, attention.layer_norm, dtype)
        other = _attention(attention.EncDecAttention, normed, encoded.hidden, None, encoded.mask, drop)
        x = x + F.dropout(other, drop, drop > 0)
    last = block.layer[-1]
    normed = rms_norm(x, last.layer_norm, dtype)
    return x + (last.experts(normed, mask) if hasattr(last, "experts") else _dense_ffn(last, normed, drop))


def final_norm(stack: Any, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The output of a stack, in ``dtype``: the normalised output of its last block."""
    drop = _dropout_rate(stack)
    return F.dropout(rms_norm(x, stack.final_layer_norm, dtype), drop, drop > 0)


def _dropout_rate(stack: Any) -> float:
    return stack.config.dropout_rate if stack.training else 0.0


def _attention(
    layer: T5Attention,
    x_BSD: torch.Tensor,
    other: torch.Tensor | None,
    bias: torch.Tensor | None,
    mask: torch.Tensor | None,
    drop: float,
) -> torch.Tensor:
    """Attention of ``x_BSD`` to itself, or to ``other``, where ``mask`` is true. T5 does not scale the scores.

    ``F.scaled_dot_product_attention`` has no fused kernel for a learned bias, and in bfloat16 takes 1.5 to 2.5 times
    as long on a CPU.
    """
    batch, heads, kv = len(x_BSD), layer.n_heads, layer.key_value_proj_dim

    def project(x: torch.Tensor, *linears: nn.Linear) -> torch.Tensor:
        """[B, S, D] -> [len(linears), B * H, S, K]"""
        y = linear(x, *(part.weight for part in linears))
        y = y.view(batch, -1, len(linears), heads, kv).permute(2, 0, 3, 1, 4)
        return y.reshape(len(linears), batch * heads, -1, kv)

    if other is None:
        q, k, v = project(x_BSD, layer.q, layer.k, layer.v).unbind(0)
    else:
        (q,), (k, v) = project(x_BSD, layer.q), project(other, layer.k, layer.v).unbind(0)
    scores = torch.bmm(q, k.mT)
    if bias is not None:
        scores = scores.view(batch, heads, *scores.shape[1:]).add_(bias).flatten(0, 1)
    if mask is not None:
        # Not minus infinity: an input that is padding alone would get scores without a softmax.
        excluded = torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, torch.finfo(scores.dtype).min)
        scores = scores.view(batch, -1, scores.shape[-1]).add_(excluded[:, None]).view_as(scores)
    weights = F.dropout(scores.softmax(-1), drop, drop > 0)
    y = torch.bmm(weights, v).view(batch, heads, -1, kv).transpose(1, 2).flatten(2)
    return linear(y, layer.o.weight)


def _dense_ffn(layer: Any, x: torch.Tensor, drop: float) -> torch.Tensor:
    """The FFN of a dense layer; in a gated FFN, ``wi_0`` is the gate."""
    ffn = _dense(layer)
    if hasattr(ffn, "wi_0"):
        gate, inner = linear(x, ffn.wi_0.weight, ffn.wi_1.weight).chunk(2, -1)
        inner = ffn.act(gate) * inner
    else:
        inner = ffn.act(linear(x, ffn.wi.weight))
    return F.dropout(linear(F.dropout(inner, drop, drop > 0), ffn.wo.weight), drop, drop > 0)


def _dense(layer: Any) -> Any:
    """The FFN module, which has different names in T5 and Switch models."""
    return layer.DenseReluDense if hasattr(layer, "DenseReluDense") else layer.mlp


def position_bias(stack: Any, length: int, dtype: torch.dtype) -> torch.Tensor:
    """Relative position bias [H, length, length] of all blocks; minus infinity at later positions in a decoder.

    The bias depends only on the distance, so each of the 2 * length - 1 distances is looked up once.
    """
    attention, table = stack.block[0].layer[0].SelfAttention, bias_table(stack)
    distance = torch.arange(1 - length, length, device=table.weight.device)
    bucket = attention._relative_position_bucket(
        distance,
        bidirectional=not attention.is_decoder,
        num_buckets=attention.relative_attention_num_buckets,
        max_distance=attention.relative_attention_max_distance,
    )
    bias = call(table, lambda: F.embedding(bucket, table.weight)).to(dtype)  # [distances, H]
    if attention.is_decoder:
        bias = bias.masked_fill((distance > 0)[:, None], float("-inf"))
    return diagonals(bias.mT.contiguous(), length)


def bias_table(stack: Any) -> nn.Embedding:
    """The relative position biases of a stack, [buckets, H]; the first block holds them for all blocks."""
    table: nn.Embedding = stack.block[0].layer[0].SelfAttention.relative_attention_bias
    return table
