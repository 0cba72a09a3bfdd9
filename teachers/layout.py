"""The layout of a Switch model, read from the names and shapes of its tensors. Does not import torch.

The config of a public checkpoint need not describe its weights. The config of google/switch-c-2048, for example, has 12
decoder layers of which 15 are sparse.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from distill.errors import UserError
from distill.models.header import EMBEDDINGS

Shape = tuple[int, ...]
STACKS = ("encoder", "decoder")
# Gated or not -> name in a plain checkpoint -> name in a SwitchLayer. T5's wi_0 is the gate.
EXPERT_WEIGHTS = {False: {"wi": "wi", "wo": "wo"}, True: {"wi_0": "wi_gate", "wi_1": "wi", "wo": "wo"}}
# Numbers of more digits are of no model, and the tensors that they imply would not fit into memory.
_EXPERT = re.compile(r"mlp\.experts\.expert_(\d{1,4})\.(wi|wi_0|wi_1|wo)\.weight")
LAYERS = {"encoder": "num_layers", "decoder": "num_decoder_layers"}
_BLOCK = re.compile(r"(encoder|decoder)\.block\.(\d{1,4})\.layer\.([0-2])\.(.+)")
_HINT = "copy or save the model again"
# The first decoder block of old T5 models has a bias that nothing reads.
_OBSOLETE = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


class Layout(NamedTuple):
    """The layout of a Switch model."""

    sizes: dict[str, int]  # by their names in config.json
    sparse: dict[str, tuple[int, ...]]  # stack -> indices of its blocks with a Switch layer
    gated: bool
    has_head: bool  # whether there is an ``lm_head.weight``

    def differences(self, config: Mapping[str, Any]) -> list[str]:
        """A sentence for each entry of a config.json that the tensors contradict. The tensors are right."""
        found = [
            f"its config.json has {name} {config[name]!r:.40}, but its tensors have {size}"
            for name, size in self.sizes.items()
            if config.get(name) not in (None, size)
        ]
        for stack in STACKS:
            layers = self.sizes[LAYERS[stack]]
            number = config.get(f"num_sparse_{stack}_layers", 3)  # the default of transformers
            if type(number) is int and (described := sparse_blocks(layers, number)) != self.sparse[stack]:
                found.append(
                    f"its config.json describes sparse {stack} blocks {_listed(described)}, but its tensors have "
                    f"{_listed(self.sparse[stack])}"
                )
        return [f"{sentence}; the tensors are used" for sentence in found]


def read_layout(shapes: Mapping[str, Shape], description: str) -> Layout:
    """The layout of a Switch model that has these tensors, and no others.

    Args:
        shapes: of the tensors, by the names of transformers.
        description: names the model in messages.

    Raises:
        UserError: the tensors are not those of a Switch Transformer: one is missing, unexpected or of another shape, or
            no block is sparse.
    """
    blocks, sparse, experts = _count(shapes)
    if not any(sparse.values()):
        raise UserError(f"{description} has no Switch layer; name a sparse model")
    first = f"encoder.block.{(sparse['encoder'] or (0,))[0]}.layer.1.mlp."
    gated = any(".wi_0." in name for name in shapes)
    ffn = first + ("experts.expert_0." if sparse["encoder"] else "") + ("wi_0.weight" if gated else "wi.weight")
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    (rows, width), (inner, _), (buckets, heads) = (
        _matrix(shapes, name, description) for name in ("shared.weight", ffn, bias)
    )
    attended = _matrix(shapes, "encoder.block.0.layer.0.SelfAttention.q.weight", description)[0]
    sizes = {
        "vocab_size": rows,
        "d_model": width,
        "d_kv": attended // max(heads, 1),
        "d_ff": inner,
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "num_layers": blocks["encoder"],
        "num_decoder_layers": blocks["decoder"],
        "num_experts": experts,
    }
    layout = Layout(sizes, sparse, gated, "lm_head.weight" in shapes)
    _compare(shapes, expected_shapes(layout), description)
    return layout


def sparse_blocks(layers: int, number: int) -> tuple[int, ...]:
    """The sparse blocks of a stack, as transformers derives them from a config with ``number`` sparse layers."""
    step = layers // number if number > 0 else layers
    return tuple(block for block in range(layers) if (block % step == 1 if step > 1 else step == 1))


def expected_shapes(layout: Layout) -> dict[str, Shape]:
    """The shape of every tensor of a Switch model, by the names of transformers, without optional embeddings."""
    s = layout.sizes
    width, attended = s["d_model"], s["num_heads"] * s["d_kv"]
    shapes: dict[str, Shape] = {"shared.weight": (s["vocab_size"], width)}
    for stack in STACKS:
        attentions = ("SelfAttention",) if stack == "encoder" else ("SelfAttention", "EncDecAttention")
        for block in range(s[LAYERS[stack]]):
            prefix = f"{stack}.block.{block}.layer."
            for number, attention in enumerate(attentions):
                shapes[f"{prefix}{number}.layer_norm.weight"] = (width,)
                shapes |= {f"{prefix}{number}.{attention}.{part}.weight": (attended, width) for part in "qkv"}
                shapes[f"{prefix}{number}.{attention}.o.weight"] = (width, attended)
            if block == 0:
                shapes[f"{prefix}0.SelfAttention.relative_attention_bias.weight"] = (
                    s["relative_attention_num_buckets"],
                    s["num_heads"],
                )
            shapes |= _feed_forward(f"{prefix}{len(attentions)}.", layout, sparse=block in layout.sparse[stack])
        shapes[f"{stack}.final_layer_norm.weight"] = (width,)
    return shapes


def plain_names(parameter: str, num_experts: int, *, gated: bool) -> list[str]:
    """The names in a plain checkpoint of a parameter of ``teachers.build``; one for each expert if it has all experts.

    Args:
        parameter: its name, such as ``encoder.block.1.layer.1.mlp.wi``.
        num_experts: number of experts in each Switch layer.
        gated: whether the FFNs are gated.
    """
    owner, _, weight = parameter.rpartition(".mlp.")
    if weight == "router.weight":
        return [f"{owner}.mlp.router.classifier.weight"]
    if not is_expert_weight(parameter):
        return [parameter]
    plain = next(plain for plain, ours in EXPERT_WEIGHTS[gated].items() if ours == weight)
    return [f"{owner}.mlp.experts.expert_{expert}.{plain}.weight" for expert in range(num_experts)]


def is_expert(name: str) -> bool:
    """Whether a tensor of a plain checkpoint is a weight of an expert."""
    return ".mlp.experts." in name


def is_expert_weight(parameter: str) -> bool:
    """Whether a parameter of ``teachers.build`` is a weight of all experts of a Switch layer."""
    return re.search(r"\.mlp\.(wi|wi_gate|wo)$", parameter) is not None


def _feed_forward(prefix: str, layout: Layout, *, sparse: bool) -> dict[str, Shape]:
    width, inner, experts = (layout.sizes[name] for name in ("d_model", "d_ff", "num_experts"))
    shapes: dict[str, Shape] = {f"{prefix}layer_norm.weight": (width,)}
    if sparse:
        shapes[f"{prefix}mlp.router.classifier.weight"] = (experts, width)
    for owner in [f"experts.expert_{expert}." for expert in range(experts)] if sparse else [""]:
        for name in EXPERT_WEIGHTS[layout.gated]:
            shapes[f"{prefix}mlp.{owner}{name}.weight"] = (width, inner) if name == "wo" else (inner, width)
    return shapes


def _count(shapes: Iterable[str]) -> tuple[dict[str, int], dict[str, tuple[int, ...]], int]:
    """Number of blocks and indices of sparse blocks of each stack, and the number of experts."""
    blocks = dict.fromkeys(STACKS, 0)
    sparse: dict[str, set[int]] = {stack: set() for stack in STACKS}
    experts = 0
    for name in shapes:
        if (match := _BLOCK.fullmatch(name)) is None:
            continue
        stack, block = match[1], int(match[2])
        blocks[stack] = max(blocks[stack], block + 1)
        if match[4].startswith(("mlp.experts.", "mlp.router.")):
            sparse[stack].add(block)
        if expert := _EXPERT.fullmatch(match[4]):
            experts = max(experts, int(expert[1]) + 1)
    return blocks, {stack: tuple(sorted(found)) for stack, found in sparse.items()}, experts


def _matrix(shapes: Mapping[str, Shape], name: str, description: str) -> Shape:
    if name not in shapes:
        raise UserError(f"{description} has 1 missing tensors for a Switch Transformer, such as {name}; {_HINT}")
    if len(shapes[name]) != 2 or 0 in shapes[name]:
        raise UserError(f"{description} has {name} of shape {shapes[name]}, which is no matrix; {_HINT}")
    return shapes[name]


def _compare(shapes: Mapping[str, Shape], expected: dict[str, Shape], description: str) -> None:
    optional = dict.fromkeys(EMBEDDINGS, expected["shared.weight"])
    optional[_OBSOLETE] = expected["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    for problem, names in (
        ("missing", sorted(expected.keys() - shapes.keys())),
        ("unexpected", sorted(shapes.keys() - expected.keys() - optional.keys())),
    ):
        if names:
            raise UserError(
                f"{description} has {len(names)} {problem} tensors for a Switch Transformer, such as {names[0]:.100}; "
                f"{_HINT}"
            )
    for name, shape in shapes.items():
        if shape != (wanted := expected.get(name) or optional[name]):
            raise UserError(f"{description} has {name} of shape {shape}, but its other tensors need {wanted}; {_HINT}")


def _listed(blocks: tuple[int, ...]) -> str:
    return ", ".join(map(str, blocks)) or "none"
