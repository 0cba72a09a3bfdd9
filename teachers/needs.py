"""The memory that a teacher needs in inference, computed from the headers of its files. Does not import torch.

B examples per batch, S input tokens, T target tokens.
"""

from collections import defaultdict
from typing import NamedTuple

from distill.models.header import EMBEDDINGS, is_product_matrix
from distill.models.weight_files import StoredTensors
from distill.training.precision import Precision
from teachers.config import CAST_AT_ONCE, MINIMUM_CAPACITY, SwitchConfig
from teachers.layout import Layout, expected_shapes, is_expert

_LOGITS = 2**23  # at a time, as in distill.evaluation and distill.data.soft_labels
_BYTES_PER_LOGIT = 32  # float32 logits, log-probabilities and probabilities, float64 sums, and temporary copies
_BYTES = {"bfloat16": 2, "float32": 4}


class BatchShape(NamedTuple):
    """The size of a batch."""

    examples: int  # B
    inputs: int  # S
    targets: int  # T

    def state_bytes(self, width: int) -> int:
        """Bytes of the states of a batch between two blocks, for d_model ``width``."""
        return 4 * width * self.examples * (self.inputs + self.targets)


class Needs(NamedTuple):
    """Bytes of memory that a teacher needs in inference."""

    non_experts: int
    layers: dict[str, int]  # block with a Switch layer, such as "encoder.block.1" -> its experts
    blocks: int  # of encoder and decoder
    working: int  # for a forward pass of one batch and its logits, an upper estimate

    @property
    def experts(self) -> int:
        """Bytes of all experts."""
        return sum(self.layers.values())

    @property
    def whole(self) -> int:
        """Bytes with all weights in memory."""
        return self.non_experts + self.experts + self.working

    def divided(self, processes: int) -> "Needs":
        """Bytes in each process if ``processes`` divide the experts, with the tokens of equally loaded experts."""
        return self._replace(layers={block: -(-size // processes) for block, size in self.layers.items()})

    @property
    def by_layer(self) -> int:
        """Bytes with the experts of one Switch layer in memory at a time, and the states between blocks on disk."""
        return self.non_experts + max(self.layers.values()) + self.working


def needs_of(
    layout: Layout,
    tensors: StoredTensors,
    switch: SwitchConfig,
    precision: Precision | None,
    batch: BatchShape,
    *,
    tied: bool,
) -> Needs:
    """The memory that a teacher needs.

    Args:
        layout: of the teacher.
        tensors: all tensors of its files.
        switch: the settings of the Switch layers.
        precision: of the matrix products; None as for ``teachers.load.read_teacher``.
        batch: the batches that it runs on.
        tied: whether its head is the embedding.
    """
    shapes = expected_shapes(layout)
    if not tied:
        shapes |= {name: shapes["shared.weight"] for name in EMBEDDINGS if name in tensors}
    non_experts = 0
    experts: dict[tuple[str, str], list[str]] = defaultdict(list)  # block, matrix -> its tensors
    for name, shape in shapes.items():
        if is_expert(name):
            experts[name.partition(".layer.")[0], name.rsplit(".", 2)[1]].append(name)
            continue
        own = 2 if tensors[name].dtype == "BF16" else 4
        width = {None: own, "float32": 4, "bfloat16": 2 if is_product_matrix(name, len(shape)) else own}[precision]
        non_experts += width * tensors[name].numel
    layers: dict[str, int] = defaultdict(int)
    products, cast = _BYTES[precision or "float32"], 0
    for (block, _), names in experts.items():
        # All experts of a layer have one dtype in memory, and float16 is converted to float32.
        width = 2 if precision == "bfloat16" or all(tensors[name].dtype == "BF16" for name in names) else 4
        values = sum(tensors[name].numel for name in names)
        layers[block] += width * values
        cast = max(cast, values if width != products else 0)
    sizes = layout.sizes
    working = 3 * products * min(cast, CAST_AT_ONCE) + _activations(layout, switch, batch, products)
    return Needs(non_experts, dict(layers), sizes["num_layers"] + sizes["num_decoder_layers"], working)


def _activations(layout: Layout, switch: SwitchConfig, batch: BatchShape, width: int) -> int:
    """Bytes of the largest activations of one batch at a time; ``width`` is the size of a value in the products."""
    s, count, longest = layout.sizes, batch.examples, max(batch.inputs, batch.targets)
    tokens, attended = count * longest, s["num_heads"] * s["d_kv"]
    scores = (2 * count + 2) * s["num_heads"] * longest**2  # scores and their softmax; the position bias twice
    attention = width * (scores + tokens * (6 * attended + 2 * s["d_model"]))
    gates = 2 if layout.gated else 1
    capacity = max(MINIMUM_CAPACITY, tokens / s["num_experts"] * switch.capacity_factor_eval)
    slots = min(capacity * s["num_experts"], 4 * tokens + MINIMUM_CAPACITY * s["num_experts"])
    ffn = int(width * slots * (3 * s["d_model"] + 2 * gates * s["d_ff"]))
    logits = min(_LOGITS, count * batch.targets * s["vocab_size"]) * _BYTES_PER_LOGIT
    logits += width * s["vocab_size"] * s["d_model"]  # the head in the dtype of the products
    return 4 * 4 * tokens * s["d_model"] + max(attention, ffn, logits)  # residual states and normalisation
