"""Tiny checkpoints as Google's Switch Transformers are published, written with torch, safetensors and json alone."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

EMBEDDINGS = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
EXPERT = "encoder.block.1.layer.1.mlp.experts.expert_2.wi.weight"
# config.json of google/switch-base-8, with tiny sizes.
CONFIG = {
    "add_router_probs": False,
    "architectures": ["SwitchTransformersForConditionalGeneration"],
    "d_ff": 32,
    "d_kv": 8,
    "d_model": 16,
    "decoder_sparse_step": 2,
    "decoder_start_token_id": 0,
    "dense_act_fn": "relu",
    "dropout_rate": 0.1,
    "encoder_sparse_step": 2,
    "eos_token_id": 1,
    "expert_capacity": 64,
    "feed_forward_proj": "relu",
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "is_gated_act": False,
    "layer_norm_epsilon": 1e-06,
    "model_type": "switch_transformers",
    "num_decoder_layers": 4,
    "num_experts": 4,
    "num_heads": 2,
    "num_layers": 4,
    "num_sparse_decoder_layers": 2,
    "num_sparse_encoder_layers": 2,
    "pad_token_id": 0,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "router_bias": False,
    "router_dtype": "float32",
    "router_jitter_noise": 0.01,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 64,
}

Dtype = Callable[[str], torch.dtype]  # of a tensor, by its name
State = dict[str, torch.Tensor]


def all_in(dtype: torch.dtype) -> Dtype:
    return lambda name: dtype


FLOAT32 = all_in(torch.float32)


def mixed(name: str) -> torch.dtype:
    """Routers are float32, all other tensors are bfloat16."""
    return torch.float32 if ".router." in name else torch.bfloat16


def plain_model(dtype: Dtype = FLOAT32, **changes: object) -> SwitchTransformersForConditionalGeneration:
    """A model of transformers in float32, whose values ``dtype`` holds exactly. All parts affect the output."""
    torch.manual_seed(0)
    values = {name: value for name, value in CONFIG.items() if name != "torch_dtype"}
    model = SwitchTransformersForConditionalGeneration(SwitchTransformersConfig(**{**values, **changes})).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3)
        parameter.data = parameter.data.to(dtype(name)).float()
    return model


def plain_state(
    model: SwitchTransformersForConditionalGeneration,
    dtype: Dtype = FLOAT32,
    *,
    embeddings: bool = False,
) -> State:
    """The tensors of a model's files; with ``embeddings`` also those that are one with ``shared.weight``."""
    state = {name: value.to(dtype(name)) for name, value in model.state_dict().items() if name not in EMBEDDINGS}
    return state | (dict.fromkeys(EMBEDDINGS, state["shared.weight"]) if embeddings else {})


def write_weights(directory: Path, state: State, kind: str = "safetensors", shards: int = 1) -> list[Path]:
    """Write weight files of one kind, ``safetensors`` or ``bin``, and return their paths; several have an index."""
    directory.mkdir(exist_ok=True)
    stem = {"safetensors": "model", "bin": "pytorch_model"}[kind]
    paths, parts, names = [], {}, list(state)
    for number in range(shards):
        name = f"{stem}.{kind}" if shards == 1 else f"{stem}-{number + 1:05}-of-{shards:05}.{kind}"
        paths.append(directory / name)
        part = {one: state[one] for one in names[number::shards]}
        if kind == "bin":
            torch.save(part, paths[-1])
        else:
            save_file({one: value.clone() for one, value in part.items()}, paths[-1], metadata={"format": "pt"})
        parts |= dict.fromkeys(part, name)
    if shards > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": parts}
        (directory / f"{stem}.{kind}.index.json").write_text(json.dumps(index))
    return paths


def write_checkpoint(
    directory: Path, state: State, kind: str = "safetensors", shards: int = 1, **changes: object
) -> Path:
    """``write_weights`` and ``CONFIG`` with ``changes``; None omits an entry."""
    write_weights(directory, state, kind, shards)
    config = {name: value for name, value in {**CONFIG, **changes}.items() if value is not None}
    (directory / "config.json").write_text(json.dumps(config))
    return directory
