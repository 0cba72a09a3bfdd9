"""Load a transformers Switch model; its sparse layers become SwitchLayers."""

from pathlib import Path

import torch
from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

from distill.arguments import require
from distill.errors import UserError
from distill.models.directory import check_weights, read_model_config
from distill.models.load import fetch_checked, load_fetched, load_shapes, read_config
from teachers.build import GatedSwitch, with_switch_layers
from teachers.check import check_teacher, check_teacher_config
from teachers.config import SwitchConfig

_EMBEDDINGS = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")  # where they are not ``shared``


def load_teacher(source: str | Path, switch: SwitchConfig | None = None) -> SwitchTransformersForConditionalGeneration:
    """Read a transformers Switch model from a directory or the hub; its sparse layers become SwitchLayers.

    ReLU, GELU or gated GELU, tied or untied. ``switch`` gives capacity factors, jitter and expert dropout; the
    paper's values where it is None. The model is in eval mode.

    Args:
        source: a directory, or a name on the hub that may be pinned (``NAME@REVISION``).

    Raises:
        UserError: it cannot be read, is no Switch model, its tensors do not fit its config, or are not finite.
        ValueError: an argument is of another type.
    """
    require("source", source, "a directory, or a name on the hub", lambda given: isinstance(given, str | Path))
    switch = SwitchConfig() if switch is None else switch
    require("switch", switch, "a SwitchConfig", lambda given: isinstance(given, SwitchConfig))
    source, description = str(source), f"teacher {str(source)!r}"
    fetched = fetch_checked(source, description, lambda: check_teacher(source))
    config = read_teacher_config(source)
    model, missing = load_fetched(_class(config), fetched, description, config=config, may_lack=_EMBEDDINGS)
    _check_sparse(model, description)
    model.generation_config.decoder_start_token_id = config.decoder_start_token_id  # which its file may leave out
    _share_embeddings(model, missing)
    return with_switch_layers(model, switch, copy_experts=True).eval()


def check_tensors(source: str, description: str) -> None:
    """Compare the tensors of a teacher's safetensors with its config; nothing is downloaded, and no value is read.

    Raises:
        UserError: they are not those of its config, or it has no Switch layer.
    """
    if (shapes := check_weights(source, description, finite=False)) is not None:
        config = read_teacher_config(source)
        _check_sparse(
            load_shapes(_class(config), shapes, description, config=config, may_lack=_EMBEDDINGS), description
        )


def _class(config: SwitchTransformersConfig) -> type[SwitchTransformersForConditionalGeneration]:
    return GatedSwitch if config.is_gated_act else SwitchTransformersForConditionalGeneration


def _check_sparse(model: SwitchTransformersForConditionalGeneration, description: str) -> None:
    if not any(getattr(module, "is_sparse", False) for module in model.modules()):
        raise UserError(
            f"{description} has no Switch layer (encoder_sparse_step, decoder_sparse_step); name a sparse model"
        )


def read_teacher_config(source: str | Path) -> SwitchTransformersConfig:
    """The config of a checkpoint, with ``is_gated_act`` and the activation's own name set whatever its age.

    Raises:
        UserError: it cannot be read, is no Switch model, or has a router that the paper's has not.
    """
    description = f"teacher {str(source)!r}"
    check_teacher_config(read_model_config(str(source), description), description)
    config = read_config(SwitchTransformersConfig, str(source), description)
    if getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = config.pad_token_id
    names = (config.dense_act_fn, getattr(config, "feed_forward_proj", None) or "")
    config.is_gated_act = getattr(config, "is_gated_act", False) or any(name.startswith("gated-") for name in names)
    activation = config.dense_act_fn.removeprefix("gated-")
    config.dense_act_fn = "gelu_new" if config.is_gated_act and activation == "gelu" else activation
    return config


def _share_embeddings(model: SwitchTransformersForConditionalGeneration, missing: set[str]) -> None:
    """Let an untied model's encoder and decoder use ``shared`` where it is theirs.

    An untied checkpoint may leave them out (they are the same as ``shared``) or hold a copy or a weight of its own.
    """
    for name in _EMBEDDINGS:
        module = model.get_submodule(name.removesuffix(".weight"))
        if name in missing or torch.equal(model.get_parameter(name), model.shared.weight):
            module.weight = model.shared.weight
