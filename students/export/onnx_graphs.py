"""``onnx``: an encoder graph that ends in the decoder's cross keys and values, and a graph of one decoder step.

B examples, S input tokens, P tokens decoded so far, V words, H heads, K d_kv, L decoder layers.
"""

import logging
import tempfile
import warnings
from pathlib import Path

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
        self.encoder, self.blocks = student.encoder, student.decoder.block
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
    """One token [B, 1] of each row, given the cross and the past keys and values -> logits [B, V], and the present."""

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
        layers = range(self.student.config.num_decoder_layers)
        for layer in layers:
            self_cache.update(past[2 * layer], past[2 * layer + 1], layer)
            cross_cache.update(cross[2 * layer], cross[2 * layer + 1], layer)
            cache.is_updated[layer] = True
        # Its keys and values are in the cache already, so that only the shape of what the encoder returned is read.
        encoded = torch.empty(input_ids.shape[0], cross[0].shape[2], self.student.config.d_model)
        output = self.student(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
            attention_mask=encoder_attention_mask,
            decoder_input_ids=input_ids,
            past_key_values=cache,
            use_cache=True,
        )
        made = cache.self_attention_cache.layers
        return output.logits.flatten(0, 1), *(
            tensor for layer in layers for tensor in (made[layer].keys, made[layer].values)
        )


def write(student: T5ForConditionalGeneration, source: Path, directory: Path, precision: str) -> None:
    """encoder.onnx and decoder.onnx with their weights beside them, configs and tokenizer."""
    write_shared_files(student, source, directory, config=True)
    if precision == "int8":
        # A tied head is the transpose of the embedding, which is looked up in float32: only its own copy is quantised.
        student.lm_head.weight = nn.Parameter(student.lm_head.weight.detach().clone())
    if precision == "float32":
        _write_graphs(student, directory)
        return
    with tempfile.TemporaryDirectory(dir=directory) as tmp_dir:
        _write_graphs(student, Path(tmp_dir))
        for name in ("encoder", "decoder"):
            quantise(Path(tmp_dir) / f"{name}.onnx", directory / f"{name}.onnx")


def _write_graphs(student: T5ForConditionalGeneration, directory: Path) -> None:
    # Of the plain products onnxruntime makes one operation; sdpa comes out as copies of the keys.
    student.set_attn_implementation("eager")
    config = student.config
    layers = range(config.num_decoder_layers)
    batch, source, past = (torch.export.Dim(name) for name in ("batch", "source", "past"))
    names = {kind: [f"{kind}.{i}.{part}" for i in layers for part in ("key", "value")] for kind in ("cross", "past")}
    present = [name.replace("past", "present") for name in names["past"]]
    # The sizes of these stand for no particular ones; 0 and 1 would be taken as fixed.
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


def _export(module: nn.Module, inputs: tuple, path: Path, **names) -> None:
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)  # "no torchvision"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # on things inside torch.onnx and transformers that nobody here can change
        torch.onnx.export(
            module.eval(), inputs, path, dynamo=True, opset_version=OPSET, external_data=True, verbose=False, **names
        )


def quantise(graph: Path, target: Path) -> None:
    """Matrix products in int8: weights once and by column, activations when they are known.

    Embeddings stay in float32, and so does a head that is tied to them, because it is no weight of its own there.
    """
    logging.getLogger().addFilter(_no_advice)
    try:
        quantize_dynamic(
            onnx.load(graph),
            target,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
        )
    finally:
        logging.getLogger().removeFilter(_no_advice)


def _no_advice(record: logging.LogRecord) -> bool:
    """onnxruntime advises to simplify the graph first, which torch.onnx has done."""
    return "pre-processing" not in record.getMessage()
