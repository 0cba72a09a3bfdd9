"""Synthetic checkpoints of Switch models of any size, and random examples for them."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

from distill.data.examples import Batch
from distill.models.weight_files import INDEXES
from teachers.layout import LAYERS, Layout, expected_shapes, sparse_blocks


class Size(NamedTuple):
    """The size of a synthetic Switch model with ReLU and tied embeddings. Every second block is sparse."""

    d_model: int
    d_ff: int
    experts: int
    blocks: int  # of the encoder, and of the decoder
    vocabulary: int
    heads: int = 4

    @property
    def layout(self) -> Layout:
        """Its layout."""
        sizes = {"vocab_size": self.vocabulary, "d_model": self.d_model, "d_kv": self.d_model // self.heads}
        sizes |= {"d_ff": self.d_ff, "num_heads": self.heads, "relative_attention_num_buckets": 32}
        sizes |= {"num_layers": self.blocks, "num_decoder_layers": self.blocks, "num_experts": self.experts}
        sparse = sparse_blocks(self.blocks, self.blocks // 2)
        return Layout(sizes, {stack: sparse for stack in LAYERS}, gated=False, has_head=False)


def write_checkpoint(directory: Path, size: Size, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write random weights, a file per block. Memory holds one block. Every expert gets tokens, and some are dropped.

    Args:
        directory: new or empty.
        size: of the model.
        dtype: of all tensors.
    """
    directory.mkdir(parents=True, exist_ok=True)
    files: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
    for name, shape in expected_shapes(size.layout).items():
        block, _, rest = name.partition(".layer.")
        files[block if rest else "other"][name] = shape
    generator, parts = torch.Generator().manual_seed(0), {}
    for file, shapes in files.items():
        tensors = {name: _random(name, shape, generator).to(dtype) for name, shape in shapes.items()}
        save_file(tensors, directory / f"{file}.safetensors", metadata={"format": "pt"})
        parts |= dict.fromkeys(shapes, f"{file}.safetensors")
    (directory / INDEXES[0]).write_text(json.dumps({"metadata": {}, "weight_map": parts}))
    config = {**size.layout.sizes, "model_type": "switch_transformers", "dense_act_fn": "relu", "dropout_rate": 0.0}
    config |= {f"num_sparse_{stack}_layers": len(blocks) for stack, blocks in size.layout.sparse.items()}
    config |= {"tie_word_embeddings": True, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    (directory / "config.json").write_text(json.dumps(config))


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape)
    scale = 1.0 if "shared" in name or "router" in name else shape[-1] ** -0.5
    return torch.randn(shape, generator=generator) * scale


class RandomExamples:
    """Random token ids in place of ``distill.data.examples.Examples``; example i is a function of i."""

    class Lengths(NamedTuple):
        """Tokens of an example."""

        inputs: int
        targets: int

    def __init__(self, vocabulary: int, inputs: int, targets: int):
        self.lengths, self._vocabulary = self.Lengths(inputs, targets), vocabulary

    def batch(self, indices: Sequence[int]) -> Batch:
        """As ``Examples.batch``."""
        rows = [torch.randint(2, self._vocabulary, (sum(self.lengths),), generator=_seeded(i)) for i in indices]
        return Batch(*torch.stack(rows).split(list(self.lengths), 1))


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
