"""Export to ``onnx``: a graph of the encoder and the decoder's cross keys and values, and a graph of one decoder step.

B examples, S input tokens, P tokens decoded so far, V vocabulary size, H heads, K d_kv, L decoder layers.
"""

import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import nn
from transformers import T5ForConditionalGeneration
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from students.export.student import write_shared_files

OPSET = 20


class _Encoder(nn.Module):
    """input_ids [B, S], attention_mask [B, S] -> key and value [B, H, S, K] of each decoder layer's cross attention."""

    def __init__(self, student: T5ForConditionalGeneration):
        super().__init__()
        self.encoder = student.encoder
        self.blocks: Any = student.decoder.block  # transformers does not declare what a block consists of
        self.heads, self.d_kv = student.config.num_heads, student.config.d_kv

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        projected = [
            linear(hidden)
            for block in self.blocks
            for linear in (block.layer[1].EncDecAttention.k, block.layer[1].EncDecAttention.v)
        ]
        return tuple(x.view(x.shape[0], x.shape[1], self.heads, self.d_kv).transpose(1, 2) for x in projected)


class _DecoderStep(nn.Module):
    """One token [B, 1] of each row, with the cross and past keys and values -> logits [B, V], present keys and values.

    Cross keys and values are [B, H, S, K], past ones [B, H, P, K] and present ones [B, H, P + 1, K] per decoder layer.
    """

    def __init__(self, student: T5ForConditionalGeneration):
        super().__init__()
        self.student = student

    def forward(
        self,
        input_ids: torch.Tensor,
        encoder_attention_mask: torch.Tensor,
        cross: list[torch.Tensor],
        past: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        self_cache, cross_cache = DynamicCache(), DynamicCache()
        cache = EncoderDecoderCache(self_cache, cross_cache)
        layers = range(len(self.student.decoder.block))
        for layer in layers:
            self_cache.update(past[2 * layer], past[2 * layer + 1], layer)
            cross_cache.update(cross[2 * layer], cross[2 * layer + 1], layer)
            cache.is_updated[layer] = True
        # The cross keys and values are in the cache, so the decoder reads only the shape of the encoder's output.
        encoded = torch.empty(input_ids.shape[0], cross[0].shape[2], self.student.config.d_model)
        output = self.student(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
            attention_mask=encoder_attention_mask,
            decoder_input_ids=input_ids,
            past_key_values=cache,
            use_cache=True,
        )
        present: Any = self_cache.layers
        return output.logits.flatten(0, 1), *(
            tensor for layer in layers for tensor in (present[layer].keys, present[layer].values)
        )


def write(student: T5ForConditionalGeneration, source: Path, directory: Path, precision: str) -> None:
    """Write encoder.onnx and decoder.onnx with their external weights, the configs and the tokenizer."""
    write_shared_files(student, source, directory, config=True)
    if precision == "int8":
        # A tied head shares the float32 embedding and would not be quantised, so the head gets a copy of its own.
        student.lm_head.weight = nn.Parameter(student.lm_head.weight.detach().clone())
    if precision == "float32":
        _write_graphs(student, directory)
        return
    with tempfile.TemporaryDirectory(dir=directory) as tmp_dir:
        _write_graphs(student, Path(tmp_dir))
        for name in ("encoder", "decoder"):
            quantise(Path(tmp_dir) / f"{name}.onnx", directory / f"{name}.onnx", head=precision == "int8")


def _write_graphs(student: T5ForConditionalGeneration, directory: Path) -> None:
    # onnxruntime fuses the products of eager attention; sdpa would be exported with copies of the keys.
    student.set_attn_implementation("eager")
    config = student.config
    layers = range(len(student.decoder.block))
    batch, source, past = (torch.export.Dim(name) for name in ("batch", "source", "past"))
    names = {kind: [f"{kind}.{i}.{part}" for i in layers for part in ("key", "value")] for kind in ("cross", "past")}
    present = [name.replace("past", "present") for name in names["past"]]
    # The dynamic sizes of the sample inputs are arbitrary, but torch.export would treat 0 and 1 as constants.
    ids, mask = torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3, dtype=torch.long)
    cross = [torch.zeros(2, config.num_heads, 3, config.d_kv) for _ in names["cross"]]
    before = [torch.zeros(2, config.num_heads, 4, config.d_kv) for _ in names["past"]]
    _export(
        _Encoder(student),
        (ids, mask),
        directory / "encoder.onnx",
        input_names=["input_ids", "attention_mask"],
        output_names=names["cross"],
        dynamic_shapes={"input_ids": {0: batch, 1: source}, "attention_mask": {0: batch, 1: source}},
    )
    _export(
        _DecoderStep(student),
        (ids[:, :1], mask, cross, before),
        directory / "decoder.onnx",
        input_names=["input_ids", "encoder_attention_mask", *names["cross"], *names["past"]],
        output_names=["logits", *present],
        dynamic_shapes={
            "input_ids": {0: batch},
            "encoder_attention_mask": {0: batch, 1: source},
            "cross": [{0: batch, 2: source}] * len(cross),
            "past": [{0: batch, 2: past}] * len(before),
        },
    )


def _export(module: nn.Module, inputs: tuple[Any, ...], path: Path, **names: Any) -> None:
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)  # "no torchvision"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # from inside torch.onnx and transformers
        torch.onnx.export(
            module.eval(), inputs, path, dynamo=True, opset_version=OPSET, external_data=True, verbose=False, **names
        )


def quantise(graph: Path, target: Path, *, head: bool = True) -> None:
    """Quantise the matrix products of an ONNX graph to int8: weights per column, activations at run time.

    Embeddings stay in float32. So does a head that shares the embedding's tensor.

    Args:
        graph: the float32 graph.
        target: the file of the int8 graph; its weights are written beside it.
        head: whether to quantise the product that gives the logits too.
    """
    model = onnx.load(graph)
    logging.getLogger().addFilter(_no_advice)
    try:
        quantize_dynamic(
            model,
            target,
            nodes_to_exclude=[] if head else _products_of_logits(model),
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
        )
    finally:
        logging.getLogger().removeFilter(_no_advice)


def _products_of_logits(model: onnx.ModelProto) -> list[str]:
    """The name of the product that gives the output ``logits``, in a list; empty for a graph without this output."""
    makers = {output: node for node in model.graph.node for output in node.output}
    maker = makers.get("logits")
    while maker is not None and maker.op_type != "MatMul":  # for example a Reshape
        maker = makers.get(maker.input[0])
    return [maker.name] if maker is not None else []


def _no_advice(record: logging.LogRecord) -> bool:
    """Drop onnxruntime's advice to simplify the graph first: torch.onnx has done so."""
    return "pre-processing" not in record.getMessage()
