"""Save a teacher in the format of plain transformers."""

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase, SwitchTransformersForConditionalGeneration

from distill.arguments import require
from distill.errors import UserError
from distill.io.files import new_directory, read_json, write_json
from distill.models.header import EMBEDDINGS
from distill.models.save import save_tokenizer
from teachers.build import require_teacher, switch_layers
from teachers.layout import is_expert_weight, plain_names, sparse_blocks


def save_teacher(
    model: SwitchTransformersForConditionalGeneration,
    directory: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """Write a directory that plain transformers loads, with equal outputs if no token is dropped.

    Plain transformers has no gated FFNs and refuses a gated teacher. Only ``load_teacher`` reads it.

    Args:
        model: a teacher from ``load_teacher`` or ``teachers.build.build_teacher``.
        directory: is created if it is missing.
        tokenizer: is saved too, if given.

    Raises:
        ValueError: an argument has the wrong type.
        UserError: the directory cannot be created, its path is a file, or no config describes which blocks are sparse.
        DiskFull: there is no space; nothing has changed.
    """
    require_teacher("model", model)
    require("directory", directory, "a directory", lambda given: isinstance(given, str | Path) and str(given) != "")
    if (blocks := _undescribed_blocks(model)) is not None:
        raise UserError(f"no config.json of transformers describes {blocks}, so this teacher cannot be saved")
    require("tokenizer", tokenizer, "a tokenizer", lambda given: given is None or hasattr(given, "save_pretrained"))
    with new_directory(Path(directory).resolve()) as tmp_dir:
        state = plain_state_dict(model)
        if not model.config.tie_word_embeddings:
            # Plain transformers shares no embeddings of an untied model, and initialises missing ones randomly.
            state |= {name: model.get_parameter(name).clone() for name in EMBEDDINGS}
        model.save_pretrained(tmp_dir, state_dict=state)
        if model.config.is_gated_act:
            # Without the prefix, plain transformers would build ungated FFNs and initialise them randomly.
            config = read_json(tmp_dir / "config.json", "save the teacher again")
            config["dense_act_fn"] = f"gated-{model.config.dense_act_fn.replace('gelu_new', 'gelu')}"
            write_json(tmp_dir / "config.json", config)
        if tokenizer is not None:
            save_tokenizer(tokenizer, tmp_dir)


def plain_state_dict(model: SwitchTransformersForConditionalGeneration) -> dict[str, torch.Tensor]:
    """The teacher's tensors with the names of plain transformers; expert weights are views, not copies."""
    state: dict[str, torch.Tensor] = {}
    gated = any(layer.mlp.wi_gate is not None for _, layer in switch_layers(model))
    for name, tensor in model.state_dict().items():
        plain = plain_names(name, model.config.num_experts, gated=gated)
        state |= zip(plain, tensor.unbind() if is_expert_weight(name) else [tensor], strict=True)
    return state


def _undescribed_blocks(model: SwitchTransformersForConditionalGeneration) -> str | None:
    """A text with the first stack whose sparse blocks no config of transformers describes; None if there is none."""
    found: dict[str, list[int]] = {"encoder": [], "decoder": []}
    for name, _ in switch_layers(model):
        stack, _, block, *_ = name.split(".")
        found[stack].append(int(block))
    for stack, blocks in (("encoder", model.encoder.block), ("decoder", model.decoder.block)):
        layers = len(blocks)
        if tuple(found[stack]) != sparse_blocks(layers, len(found[stack])):
            return f"sparse {stack} blocks {found[stack]} of {layers}"
    return None
