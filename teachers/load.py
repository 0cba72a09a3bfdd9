"""Load a Switch model of any size: each tensor is read from its file directly into its place."""

import warnings
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from transformers import GenerationConfig, SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

from distill.arguments import require
from distill.errors import UserError
from distill.io.files import file_digests
from distill.io.hub_files import CONFIG, local_files
from distill.models.directory import cached_weights, fetch_weights, read_model_config, weight_digests
from distill.models.header import EMBEDDINGS, is_product_matrix
from distill.models.load import read_config
from distill.models.read_tensors import TensorReader
from distill.models.remote_weights import remote_tensors
from distill.models.stored_tensors import read_headers
from teachers.build import build_on_meta
from teachers.check import check_head, check_teacher, check_teacher_config
from teachers.config import SwitchConfig
from teachers.divided import share_of_experts
from teachers.layout import LAYERS, Layout, is_expert, is_expert_weight, plain_names, read_layout

COMPUTE_DTYPES = (None, torch.float32, torch.bfloat16)


class StoredTeacher(NamedTuple):
    """A Switch model on this machine, before its values are read."""

    config: SwitchTransformersConfig  # describes the tensors
    layout: Layout
    reader: TensorReader
    directory: Path  # of config.json and, unless it was opened by ``open_non_experts``, of all files
    digests: dict[str, str]  # SHA-256 of config.json and of the weight files; empty for ``open_non_experts``

    def plain_names(self, parameter: str) -> list[str]:
        """The names in the files of a parameter of the model; see ``teachers.layout.plain_names``."""
        return plain_names(parameter, self.layout.sizes["num_experts"], gated=self.layout.gated)

    def read_into(self, parameter: str, target: torch.Tensor, share: range) -> None:
        """Read the values of a parameter of the model into ``target``, which has its shape.

        A parameter that has all experts is read for the experts in ``share`` alone.
        """
        names, parts = self.plain_names(parameter), [target]
        if is_expert_weight(parameter):
            names, parts = [names[expert] for expert in share], list(target.unbind())
        for name, part in zip(names, parts, strict=True):
            self.reader.read_into(name, part)


def load_teacher(
    source: str | Path, switch: SwitchConfig | None = None, *, compute_dtype: torch.dtype | None = None
) -> SwitchTransformersForConditionalGeneration:
    """Load a transformers Switch model from a directory or the hub; its sparse layers become SwitchLayers.

    The files may be safetensors or ``.bin`` files, one or several. The FFNs may use ReLU, GELU or gated GELU, and the
    embeddings may be tied or untied. The layout is read from the tensors; a warning names each entry of config.json
    that they contradict. Memory holds the model and one tensor more.

    Args:
        source: a directory, or a name on the hub that may be pinned (``NAME@REVISION``).
        switch: capacity factors, jitter and expert dropout; None for the paper's values.
        compute_dtype: dtype of the matrix products. None: weights keep the dtype of their files, but float16 becomes
            float32. float32: experts keep their dtype, and all other weights become float32. bfloat16: the weights of
            all products become bfloat16.

    Returns:
        The model in eval mode, on the CPU.

    Raises:
        UserError: the source cannot be read or is not a Switch model, or its tensors are not finite.
        ValueError: an argument has the wrong type, or ``compute_dtype`` is float16, which overflows in a Switch model.
    """
    require("source", source, "a directory, or a name on the hub", lambda given: isinstance(given, str | Path))
    switch = SwitchConfig() if switch is None else switch
    require("switch", switch, "a SwitchConfig", lambda given: isinstance(given, SwitchConfig))
    require("compute_dtype", compute_dtype, "float32, bfloat16 or None", lambda given: given in COMPUTE_DTYPES)
    stored = open_teacher(str(source))
    described = read_model_config(str(stored.directory), f"teacher {str(source)!r}")
    for sentence in stored.layout.differences(described):
        warnings.warn(f"teacher {str(source)!r}: {sentence}", stacklevel=2)
    return read_teacher(stored, switch, compute_dtype=compute_dtype)


def open_teacher(source: str) -> StoredTeacher:
    """Fetch the files of a Switch model, and check all of their values.

    Args:
        source: a directory, or a name on the hub that may be pinned (``NAME@REVISION``).

    Raises:
        UserError: as for ``load_teacher``.
    """
    description = f"teacher {source!r}"
    check_teacher(source, finite=False)  # before anything is downloaded
    directory = fetch_weights(source, description)
    tensors = read_headers(directory, description)
    digests = weight_digests(directory, tensors, description) | file_digests(directory, [directory / "config.json"])
    return _stored(directory, TensorReader.of_directory(directory, tensors), description, digests)


def open_non_experts(source: str) -> StoredTeacher:
    """Open a Switch model of which only the non-expert tensors are read, without a check of their values.

    From the hub only these tensors are fetched, unless the local cache has the whole model.

    Args:
        source: a directory, or a name on the hub that may be pinned (``NAME@REVISION``).

    Raises:
        UserError: as for ``load_teacher``, except that values may not be finite.
    """
    description = f"teacher {source!r}"
    check_teacher(source, finite=False)
    if (directory := cached_weights(source, description)) is not None:
        reader = TensorReader.of_directory(directory, read_headers(directory, description))
        return _stored(directory, reader, description, {})
    remote = remote_tensors(source, description)
    assert remote is not None  # cached_weights returns local directories
    remote.prefetch([name for name in remote.tensors if not is_expert(name)], "its non-expert tensors")
    return _stored(local_files(source, "model", description, CONFIG), remote.reader(), description, {})


def _stored(directory: Path, reader: TensorReader, description: str, digests: dict[str, str]) -> StoredTeacher:
    layout = read_layout({name: tensor.shape for name, tensor in reader.tensors.items()}, description)
    config = describing_config(read_teacher_config(str(directory)), layout, description)
    if config.tie_word_embeddings and layout.has_head:
        _check_tied(reader, description)
    return StoredTeacher(config, layout, reader, directory, digests)


def read_teacher(
    stored: StoredTeacher,
    switch: SwitchConfig,
    *,
    compute_dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    experts: bool = True,
    process: int = 0,
    processes: int = 1,
) -> SwitchTransformersForConditionalGeneration:
    """Read the values of a model, each into its place on ``device``.

    Args:
        stored: the result of ``open_teacher``.
        switch: the settings of the Switch layers.
        compute_dtype: as for ``load_teacher``.
        device: of the model.
        experts: whether to read the experts; otherwise their weights stay on the meta device.
        process, processes: with several processes, this one reads only its share of the experts. Memory never holds
            more; see ``teachers.divided``.
    """
    model = build_on_meta(stored.config, switch, stored.layout.sparse, process, processes)
    _share_embeddings(model, stored)
    dtypes = parameter_dtypes(model, stored, compute_dtype)
    wanted = {name for name, _ in model.named_parameters() if experts or not is_expert_weight(name)}
    share = share_of_experts(stored.layout.sizes["num_experts"], process, processes)
    new = {}
    for name, value in model.named_parameters():
        new[name] = torch.empty_like(value, dtype=dtypes[name], device=device) if name in wanted else value
    for name, target in new.items():
        if name in wanted:
            stored.read_into(name, target, share)
    _replace_parameters(model, new)
    if (path := stored.directory / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(path.parent)
    model.generation_config.decoder_start_token_id = stored.config.decoder_start_token_id  # the file may omit it
    return model.eval()


def parameter_dtypes(
    model: SwitchTransformersForConditionalGeneration, stored: StoredTeacher, compute_dtype: torch.dtype | None
) -> dict[str, torch.dtype]:
    """The dtype of each parameter in memory; see ``compute_dtype`` of ``load_teacher``."""
    found = {}
    for name, parameter in model.named_parameters():
        dtypes = {stored.reader.dtype(plain) for plain in stored.plain_names(name)}
        own = reduce(torch.promote_types, dtypes)
        own = torch.float32 if own in (torch.float16, torch.float64) else own
        if compute_dtype is None or (compute_dtype == torch.float32 and is_expert_weight(name)):
            found[name] = own
        else:
            computed = compute_dtype == torch.float32 or is_product_matrix(name, parameter.ndim)
            found[name] = compute_dtype if computed else own
    return found


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


def describing_config(config: SwitchTransformersConfig, layout: Layout, description: str) -> SwitchTransformersConfig:
    """``config`` changed to describe the tensors.

    Raises:
        UserError: the head of an untied model is missing.
    """
    check_head(layout, tied=config.tie_word_embeddings, description=description)
    for name, size in layout.sizes.items():
        setattr(config, name, size)
    config.is_gated_act = layout.gated
    for stack, blocks in layout.sparse.items():
        setattr(config, f"num_sparse_{stack}_layers", len(blocks))
        layers = layout.sizes[LAYERS[stack]]
        setattr(config, f"{stack}_sparse_step", layers // len(blocks) if blocks else layers)
    return config


def _check_tied(reader: TensorReader, description: str) -> None:
    """Check that a tied model's own ``lm_head.weight`` is the embedding. Only then is the scale of the output known."""
    head, shared = (reader.tensors[name] for name in ("lm_head.weight", "shared.weight"))
    if (head.file, head.offset) == (shared.file, shared.offset):
        return
    if not torch.equal(reader.read("lm_head.weight").float(), reader.read("shared.weight").float()):
        raise UserError(
            f"{description} has an lm_head.weight that differs from shared.weight, but its config.json says that both "
            "are one (tie_word_embeddings is true); set it to false if the model was trained so, or delete the tensor"
        )


def _replace_parameters(model: nn.Module, new: dict[str, torch.Tensor]) -> None:
    """Replace all parameters by name. A parameter that several modules share stays shared."""
    old = dict(model.named_parameters())
    replacement = {id(old[name]): nn.Parameter(value) for name, value in new.items()}
    for module in model.modules():
        for key, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, key, replacement[id(parameter)])


def shared_embeddings(stored: StoredTeacher) -> set[str]:
    """The embeddings, by the names of transformers, that are one parameter with ``shared.weight``.

    A tied model shares all of them. An untied checkpoint may omit those of encoder and decoder (they are shared), or
    have a copy or different weights.
    """
    if stored.config.tie_word_embeddings:
        return set(EMBEDDINGS)
    read, stacks = stored.reader.read, EMBEDDINGS[:2]
    own = [name for name in stacks if name in stored.reader.tensors]
    return set(stacks) - {name for name in own if not torch.equal(read(name), read("shared.weight"))}


def _share_embeddings(model: SwitchTransformersForConditionalGeneration, stored: StoredTeacher) -> None:
    shared = shared_embeddings(stored)
    for name in EMBEDDINGS:
        module = model.get_submodule(name.removesuffix(".weight"))
        value = model.shared.weight
        module.weight = value if name in shared else nn.Parameter(torch.empty_like(value))
