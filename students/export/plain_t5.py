"""A T5 in float64 without transformers, from config.json and model.safetensors as they are documented.

This is the second reader of an ``hf`` export. It has no defaults for missing keys, and uses no key that only one
version of transformers has. Sources: Raffel et al. 2020, section 2.1; Shazeer 2020 (arXiv:2002.05202) for gated FFNs;
T5 v1.1, which has an untied head and does not scale its output, for ``tie_word_embeddings``.

S input tokens, T target tokens, D d_model, H heads, K d_kv.
"""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}


class PlainT5:
    """The T5 in a directory. Each weight is read when it is used, so memory holds one matrix at a time.

    Raises (in the constructor or in ``score``):
        KeyError: a key of the config or a weight is missing.
        Exception: an error of safetensors or torch for a damaged file or a wrong shape.
    """

    def __init__(self, directory: Path):
        self._config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        self._file = safe_open(directory / "model.safetensors", framework="pt")
        self._names = set(self._file.keys())

    @torch.inference_mode()
    def score(self, inputs: list[list[int]], targets: list[list[int]]) -> list[list[float]]:
        """Log-probabilities in nats of each token of each target, as in ``students.runtime.Runner.score``."""
        return [self._score(ids, target) for ids, target in zip(inputs, targets, strict=True)]

    def _score(self, ids: list[int], target: list[int]) -> list[float]:
        encoded = self._stack("encoder", self._config["num_layers"], ids, None)
        shifted = [self._config["decoder_start_token_id"], *target[:-1]]
        hidden = self._stack("decoder", self._config["num_decoder_layers"], shifted, encoded)
        if self._config["tie_word_embeddings"]:
            logits = self._linear("shared", hidden * self._config["d_model"] ** -0.5)
        else:
            logits = self._linear("lm_head", hidden)
        return logits.log_softmax(-1)[range(len(target)), target].tolist()

    def _stack(self, name: str, blocks: int, ids: list[int], encoded: torch.Tensor | None) -> torch.Tensor:
        """Run the encoder, or the decoder if ``encoded`` [S, D] is given -> normalised hidden states [S or T, D]."""
        x = self._weight("shared")[ids]
        bias = self._position_bias(name, len(ids))
        for block in range(blocks):
            place = f"{name}.block.{block}.layer"
            normed = self._norm(f"{place}.0.layer_norm", x)
            x = x + self._attention(f"{place}.0.SelfAttention", normed, normed, bias)
            if encoded is not None:
                normed = self._norm(f"{place}.1.layer_norm", x)
                x = x + self._attention(f"{place}.1.EncDecAttention", normed, encoded, None)
            last = f"{place}.{1 if encoded is None else 2}"
            x = x + self._ffn(f"{last}.DenseReluDense", self._norm(f"{last}.layer_norm", x))
        return self._norm(f"{name}.final_layer_norm", x)

    def _attention(self, place: str, x: torch.Tensor, other: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Attention of ``x`` [T, D] to ``other`` [S, D] -> [T, D]. T5 does not scale the scores."""
        shape = (-1, self._config["num_heads"], self._config["d_kv"])
        q = self._linear(f"{place}.q", x).view(shape).transpose(0, 1)
        k, v = (self._linear(f"{place}.{name}", other).view(shape).transpose(0, 1) for name in ("k", "v"))
        scores = q @ k.mT
        if bias is not None:
            scores = scores + bias
        return self._linear(f"{place}.o", (scores.softmax(-1) @ v).transpose(0, 1).flatten(1))

    def _ffn(self, place: str, x: torch.Tensor) -> torch.Tensor:
        named = self._config["feed_forward_proj"]
        activation = _ACTIVATIONS["gelu_new" if named == "gated-gelu" else named.removeprefix("gated-")]
        if named.startswith("gated-"):
            inner = activation(self._linear(f"{place}.wi_0", x)) * self._linear(f"{place}.wi_1", x)
        else:
            inner = activation(self._linear(f"{place}.wi", x))
        return self._linear(f"{place}.wo", inner)

    def _position_bias(self, stack: str, length: int) -> torch.Tensor:
        """[H, length, length], added to the scores of every block; minus infinity at later positions of a decoder."""
        places = torch.arange(length)
        distance = places[None] - places[:, None]  # of the key from the query
        weight = self._weight(f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias")
        max_distance = self._config["relative_attention_max_distance"]
        buckets = position_buckets(distance, len(weight), max_distance, bidirectional=stack == "encoder")
        bias = weight[buckets].permute(2, 0, 1)
        return bias if stack == "encoder" else bias.masked_fill(distance > 0, -math.inf)

    def _norm(self, place: str, x: torch.Tensor) -> torch.Tensor:
        scale = (x.square().mean(-1, keepdim=True) + self._config["layer_norm_epsilon"]).rsqrt()
        return x * scale * self._weight(place)

    def _linear(self, place: str, x: torch.Tensor) -> torch.Tensor:
        return x @ self._weight(place).mT

    def _weight(self, place: str) -> torch.Tensor:
        if f"{place}.weight" not in self._names:
            raise KeyError(f"{place}.weight")
        return self._file.get_tensor(f"{place}.weight").double()


def position_buckets(
    distance: torch.Tensor, num_buckets: int, max_distance: int, *, bidirectional: bool
) -> torch.Tensor:
    """The bucket of each relative position.

    Half of the buckets hold a single distance each. The other half hold logarithmic ranges up to ``max_distance``.
    Logarithms are in float32 as in the training of T5, because rounding decides the bucket at powers of two.

    Args:
        distance: positions of the keys minus those of the queries; int64 of any shape.
        num_buckets: the number of buckets.
        max_distance: distances of at least this share the last bucket.
        bidirectional: whether keys after the query have buckets of their own (encoder), or share bucket 0 (decoder).

    Returns:
        The buckets, of the shape of ``distance``, from 0 to ``num_buckets`` - 1.
    """
    if bidirectional:
        num_buckets //= 2
    away = distance.abs() if bidirectional else (-distance).clamp(min=0)
    exact = num_buckets // 2
    ranges = torch.log(away.float() / exact) / math.log(max_distance / exact) * (num_buckets - exact)
    far = exact + ranges.clamp(min=0).long()
    bucket = torch.where(away < exact, away, far.clamp(max=num_buckets - 1))
    return bucket + num_buckets * (distance > 0) if bidirectional else bucket
