"""Checks of a teacher's directory before loading. Imports torch only for ``.bin`` files."""

from typing import Any

from distill.errors import UserError
from distill.models.directory import check_weights, dimension, read_model_config
from distill.models.header import POSITIONS, Header, read_header
from distill.models.weight_files import StoredTensors
from teachers.layout import Layout, read_layout

# Defaults of transformers' SwitchTransformersConfig.
_DEFAULTS = {"vocab_size": 32128, "d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12}
_DEFAULTS |= {"num_experts": 8, **POSITIONS}
ACTIVATIONS = ("relu", "gelu", "gelu_new", "gated-gelu", "gated-relu", "gated-silu", "silu")


def check_teacher(source: str, *, finite: bool = True) -> Header:
    """Check the config of a Switch model, and its tensors if they are on this machine.

    Args:
        source: a directory, or a name on the hub that may be pinned (``NAME@REVISION``).
        finite: whether to check the values of the tensors too.

    Returns:
        The header of its student, with the number of experts.

    Raises:
        UserError: the model cannot be a teacher.
    """
    description = f"teacher {source!r}"
    config = read_model_config(source, description)
    check_teacher_config(config, description)
    tensors = check_weights(source, description, finite=finite)
    return teacher_header(config, tensors, description)


def teacher_header(config: dict[str, Any], tensors: StoredTensors | None, description: str) -> Header:
    """The header of a teacher's student, with the number of experts.

    Args:
        config: the values in the teacher's config.json.
        tensors: of the teacher. None if they are not known; then ``config`` alone decides.
        description: names the model in messages.

    Raises:
        UserError: the model cannot be a teacher.
    """
    activation, gated = _activation(config)
    differences: tuple[str, ...] = ()
    tied = bool(config.get("tie_word_embeddings", True))
    if tensors is not None:
        layout = read_layout({name: tensor.shape for name, tensor in tensors.items()}, description)
        differences, gated = tuple(layout.differences(config)), layout.gated
        check_head(layout, tied=tied, description=description)
        config = {**config, **layout.sizes}
    experts = dimension(config, "num_experts", _DEFAULTS["num_experts"], description)
    proj = f"gated-{activation.replace('gelu_new', 'gelu')}" if gated else activation
    config = {"num_decoder_layers": 12, **config}
    if config.get("decoder_start_token_id") is None:  # as in load_teacher
        config["decoder_start_token_id"] = config.get("pad_token_id", 0)
    header = read_header(config, _DEFAULTS, description, feed_forward=proj, tied=tied, scaled=tied, experts=experts)
    return header._replace(differences=differences)


def check_head(layout: Layout, *, tied: bool, description: str) -> None:
    """Raise UserError if a model is untied (``tie_word_embeddings`` in its config) but has no head of its own."""
    if not tied and not layout.has_head:
        raise UserError(
            f"{description} has no lm_head.weight, but its config.json says that it is untied (tie_word_embeddings is "
            "false); copy the missing tensor, or correct config.json"
        )


def check_teacher_config(config: dict[str, Any], description: str) -> None:
    """Check that a config is of a Switch Transformer as in the paper.

    Raises:
        UserError: it is of another architecture, or has an unknown activation.
    """
    if (kind := config.get("model_type")) != "switch_transformers":
        raise UserError(f"{description} is a {kind} model; a Switch Transformer is needed")
    if config.get("is_encoder_decoder", True) is not True:
        raise UserError(
            f"{description} has only a decoder (is_encoder_decoder); a Switch Transformer with an encoder is needed"
        )
    if config.get("router_bias"):
        raise UserError(f"{description} has a router with a bias (router_bias); the paper's router has no bias")
    if (activation := config.get("dense_act_fn", "relu")) not in ACTIVATIONS:
        raise UserError(f"{description} has dense_act_fn {activation!r:.40}; known are {', '.join(ACTIVATIONS)}")


def _activation(config: dict[str, Any]) -> tuple[str, bool]:
    """The activation of the FFNs, and whether they are gated, as in ``teachers.load.read_teacher_config``."""
    names = (str(config.get("dense_act_fn", "relu")), str(config.get("feed_forward_proj") or ""))
    gated = bool(config.get("is_gated_act")) or any(name.startswith("gated-") for name in names)
    return names[0].removeprefix("gated-"), gated
