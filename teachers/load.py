"""Load a transformers Switch model; its sparse layers become SwitchLayers."""

from pathlib import Path

import torch
from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

from distill.arguments import require
from distill.errors import UserError
from distill.models.directory import Shapes, read_model_config
from distill.models.load import fetch_checked, load_fetched, load_shapes, read_config
from teachers.build import GatedSwitch, with_switch_layers
from teachers.check import check_teacher, check_teacher_config
from teachers.config import SwitchConfig

_EMBEDDINGS = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")  # omitted if they are ``shared``


def load_teacher(source: str | Path, switch: SwitchConfig | None = None) -> SwitchTransformersForConditionalGeneration:
    """Load a transformers Switch model from a directory or the hub; its sparse layers become SwitchLayers.

    The FFNs may use ReLU, GELU or gated GELU, and the embeddings may be tied or untied.

    Args:
        source: a directory, or a name on the hub that may be pinned (``NAME@REVISION``).
        switch: capacity factors, jitter and expert dropout; None for the paper's values.

    Returns:
        The model, in float32 and eval mode.

    Raises:
        UserError: the source cannot be read or is not a Switch model, or its tensors do not match its config or are not
            finite.
        ValueError: an argument has the wrong type.
    """
    require("source", source, "a directory, or a name on the hub", lambda given: isinstance(given, str | Path))
    switch = SwitchConfig() if switch is None else switch
    require("switch", switch, "a SwitchConfig", lambda given: isinstance(given, SwitchConfig))
    source, description = str(source), f"teacher {str(source)!r}"
    fetched = fetch_checked(source, description, lambda: check_teacher(source))
    config = read_teacher_config(source)
    model, missing = load_fetched(_class(config), fetched, description, config=config, may_lack=_EMBEDDINGS)
    _check_sparse(model, description)
    model.generation_config.decoder_start_token_id = config.decoder_start_token_id  # generation_config.json may omit it
    _share_embeddings(model, missing)
    return with_switch_layers(model, switch, copy_experts=True).eval()


def check_tensors(source: str, shapes: Shapes, description: str) -> None:
    """Compare the tensors of a teacher's files, from ``distill.models.directory.check_weights``, with its config.

    Raises:
        UserError: they do not match, or the model has no Switch layer.
    """
    config = read_teacher_config(source)
    _check_sparse(load_shapes(_class(config), shapes, description, config=config, may_lack=_EMBEDDINGS), description)


def _class(config: SwitchTransformersConfig) -> type[SwitchTransformersForConditionalGeneration]:
    return GatedSwitch if config.is_gated_act else SwitchTransformersForConditionalGeneration


def _check_sparse(model: SwitchTransformersForConditionalGeneration, description: str) -> None:
    if not any(getattr(module, "is_sparse", False) for module in model.modules()):
        raise UserError(
            f"{description} has no Switch layer (encoder_sparse_step, decoder_sparse_step); name a sparse model"
        )


def read_teacher_config(source: str | Path) -> SwitchTransformersConfig:
    """The config of a checkpoint, with ``is_gated_act`` and ``dense_act_fn`` set as in new checkpoints.

    Raises:
        UserError: it cannot be read, or ``teachers.check.check_teacher_config`` rejects it.
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
    """Make encoder and decoder use the parameter ``shared`` if their embeddings are equal to it.

    An untied checkpoint may omit these embeddings (they are ``shared``), or have a copy or different weights.
    """
    for name in _EMBEDDINGS:
        module = model.get_submodule(name.removesuffix(".weight"))
        if name in missing or torch.equal(model.get_parameter(name), model.shared.weight):
            module.weight = model.shared.weight
