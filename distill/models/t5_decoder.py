"""The decoder of T5 and Switch models, one token of each row at a time, on packed weights and cached keys and values.

It computes the same function as ``distill.models.t5_forward``, up to rounding.

B examples, R rows (B times the beams of an example), S input tokens, D d_model, H heads, K d_kv.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from distill.models.t5_forward import Encoded, position_bias, scaled

_FIRST_CAPACITY = 16  # tokens; a cache that is full doubles


class Decoder:
    """The decoder and the head of a model in eval mode, with copies of all weights but those of Switch layers."""

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype):
        """Copy and pack the weights.

        Args:
            model: a T5 or Switch model.
            dtype: of the products.
        """
        stack: Any = model.decoder  # transformers does not annotate its attributes
        self._stack, self._embedding, self._dtype = stack, stack.embed_tokens.weight.detach(), dtype
        self._blocks = [_Block(block, dtype) for block in stack.block]
        self._final_norm = _Norm(stack.final_layer_norm, dtype, scaled(model, torch.ones(())).item())
        self._head = _packed(dtype, model.lm_head)
        self._biases: dict[int, torch.Tensor] = {}  # by capacity

    def start(self, encoded: Encoded, beams: int) -> "Cache":
        """The state before the first token.

        Args:
            encoded: of B examples.
            beams: rows of an example.
        """
        mask = None
        if encoded.mask is not None:
            mask = torch.zeros_like(encoded.mask, dtype=self._dtype)
            mask = mask.masked_fill_(~encoded.mask, torch.finfo(self._dtype).min)[:, None, None]
        return Cache([block.cross_keys_values(encoded.hidden) for block in self._blocks], mask, beams)

    def step(self, cache: "Cache", tokens_R: torch.Tensor) -> torch.Tensor:
        """Run one token of each row.

        Args:
            cache: is extended by these tokens.
            tokens_R: [R], the last token of each row.

        Returns:
            The logits of the next token, [R, vocabulary], in the dtype of the products.
        """
        x = F.embedding(tokens_R, self._embedding).float()
        capacity = cache.make_room()
        if capacity not in self._biases:
            self._biases[capacity] = position_bias(self._stack, capacity, self._dtype)[None, :, -1:]
        # The bias depends only on the distance: that of the last of ``capacity`` tokens holds for all others.
        bias = self._biases[capacity][..., capacity - cache.length :]
        for block, own, cross in zip(self._blocks, cache.own, cache.cross, strict=True):
            x = block.step(x, own[..., : cache.length, :], bias, cross, cache.mask)
        return torch.mm(self._final_norm(x), self._head)


class Cache:
    """Keys and values that the next tokens attend to."""

    def __init__(self, cross: list[torch.Tensor], mask: torch.Tensor | None, beams: int):
        """An empty cache.

        Args:
            cross: keys and values of the inputs in each block, [2, B, H, S, K].
            mask: [B, 1, 1, S], is added to the scores of the inputs; None if there is no padding.
            beams: rows of an example.
        """
        self.cross, self.mask, self.length = cross, mask, 0
        # keys and values of the answers so far in each block, [2, R, H, capacity, K]
        self.own = [
            inputs.new_empty(2, inputs.shape[1] * beams, inputs.shape[2], 0, inputs.shape[4]) for inputs in cross
        ]

    @property
    def examples(self) -> int:
        """B."""
        return self.cross[0].shape[1]

    @property
    def rows(self) -> int:
        """R."""
        return self.own[0].shape[1]

    @property
    def device(self) -> torch.device:
        """The device of keys and values."""
        return self.own[0].device

    def make_room(self) -> int:
        """Add one token to ``length``, with unspecified keys and values; returns the capacity."""
        capacity = self.own[0].shape[3]
        if self.length == capacity:
            more = max(capacity, _FIRST_CAPACITY)
            self.own = [F.pad(own, (0, 0, 0, more)) for own in self.own]
            capacity += more
        self.length += 1
        return capacity

    def select_rows(self, rows: torch.Tensor) -> None:
        """Keep these rows, in this order; one may be there several times."""
        self.own = [own.index_select(1, rows) for own in self.own]

    def select_examples(self, examples: torch.Tensor) -> None:
        """Keep the inputs of these examples, in this order; the rows are selected by ``select_rows``."""
        self.cross = [cross.index_select(1, examples) for cross in self.cross]
        self.mask = None if self.mask is None else self.mask[examples]


class _Block:
    """A block of the decoder."""

    def __init__(self, block: Any, dtype: torch.dtype):
        own, cross, self._last = block.layer
        self._heads = own.SelfAttention.n_heads
        self._norms = [_Norm(layer.layer_norm, dtype) for layer in block.layer]
        self._qkv = _packed(dtype, own.SelfAttention.q, own.SelfAttention.k, own.SelfAttention.v)
        self._own_out = _packed(dtype, own.SelfAttention.o)
        self._cross_q = _packed(dtype, cross.EncDecAttention.q)
        self._cross_kv = _packed(dtype, cross.EncDecAttention.k, cross.EncDecAttention.v)
        self._cross_out = _packed(dtype, cross.EncDecAttention.o)
        self._sparse = hasattr(self._last, "experts")
        if not self._sparse:
            ffn = self._last.DenseReluDense if hasattr(self._last, "DenseReluDense") else self._last.mlp
            self._gated, self._act = hasattr(ffn, "wi_0"), ffn.act
            self._wi = _packed(dtype, ffn.wi_0, ffn.wi_1) if self._gated else _packed(dtype, ffn.wi)
            self._wo = _packed(dtype, ffn.wo)

    def cross_keys_values(self, encoded_BSD: torch.Tensor) -> torch.Tensor:
        """Keys and values of the inputs, [2, B, H, S, K]."""
        batch, length, _ = encoded_BSD.shape
        kv = torch.mm(encoded_BSD.flatten(0, 1), self._cross_kv)
        return kv.view(batch, length, 2, self._heads, -1).permute(2, 0, 3, 1, 4).contiguous()

    def step(
        self,
        x_RD: torch.Tensor,
        own: torch.Tensor,
        bias: torch.Tensor,
        cross: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Run one token of each row. The keys and values of the token become the last ones of ``own``.

        Args:
            x_RD: float32; its memory is reused for the result.
            own: [2, R, H, tokens so far, K].
            bias: [1, H, 1, tokens so far].
            cross: [2, B, H, S, K].
            mask: [B, 1, 1, S] or None.
        """
        rows, examples = len(x_RD), cross.shape[1]
        qkv = torch.mm(self._norms[0](x_RD), self._qkv).view(rows, 3, self._heads, 1, -1)
        own[..., -1:, :] = qkv[:, 1:].transpose(0, 1)
        x_RD = _add_product(x_RD, _attention(qkv[:, 0], own, bias).view(rows, -1), self._own_out)

        q = torch.mm(self._norms[1](x_RD), self._cross_q).view(examples, -1, self._heads, cross.shape[-1])
        y = _attention(q.transpose(1, 2), cross, mask).transpose(1, 2).reshape(rows, -1)
        x_RD = _add_product(x_RD, y, self._cross_out)

        normed = self._norms[2](x_RD)
        if self._sparse:
            return x_RD.add_(self._last.experts(normed[:, None])[:, 0])
        inner = torch.mm(normed, self._wi)
        if self._gated:
            gate, inner = inner.chunk(2, -1)
            inner = self._act(gate) * inner
        else:
            inner = self._act(inner)
        return _add_product(x_RD, inner, self._wo)


def _attention(q: torch.Tensor, keys_values: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Attention of q [B, H, n, K] to keys and values [2, B, H, S, K]; ``bias`` is added to the scores [B, H, n, S].

    torch's fused kernel takes half the time in bfloat16 on a CPU, but 1.3 to 1.6 times as long in float32.
    """
    keys, values = keys_values.unbind()
    if q.dtype != torch.float32:
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=bias, scale=1.0)
    scores = torch.matmul(q, keys.mT)
    return torch.matmul((scores if bias is None else scores.add_(bias)).softmax(-1), values)


class _Norm:
    """T5's normalisation times a factor, computed in float32."""

    def __init__(self, layer_norm: Any, dtype: torch.dtype, factor: float = 1.0):
        self._weight, self._eps = layer_norm.weight.detach().float() * factor, layer_norm.variance_epsilon
        self._shape, self._dtype = self._weight.shape, dtype

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self._shape, self._weight, self._eps).to(self._dtype)


def _packed(dtype: torch.dtype, *linears: nn.Linear) -> torch.Tensor:
    """The weights [n_i, D] of several layers as one matrix [D, sum n_i].

    A product of few rows with it takes 0.4 to 0.9 times as long on a CPU as with its transpose, torch's own layout.
    """
    return torch.cat([linear.weight.detach().to(dtype) for linear in linears]).T.contiguous()


def _add_product(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x + y @ weight, in place of x."""
    return x.addmm_(y, weight) if y.dtype == x.dtype else x.add_(torch.mm(y, weight))
