"""Checks of a model's directory before loading: its config and its safetensors. Does not import torch."""

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from distill.errors import UserError
from distill.io.files import read_json
from distill.io.hub_files import CONFIG, PICKLED_WEIGHTS, WEIGHTS, cached_files, local_files

Shapes = dict[str, tuple[int, ...]]  # of tensors, by name

_ALSO_CALLED = {"d_model": "hidden_size", "num_heads": "num_attention_heads", "num_layers": "num_hidden_layers"}
_LARGEST = {"num_layers": 1024, "num_decoder_layers": 1024, "num_experts": 4096}
# dtypes in safetensors -> dtypes of numpy. numpy has no bfloat16, whose bits are the upper half of a float32.
_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_BYTES_AT_ONCE = 2**26


class FetchedModel(NamedTuple):
    """A directory with a model's config and weights."""

    directory: Path
    is_pickled: bool  # true of some older models on the hub; never true of a local directory


def read_model_config(source: str, description: str) -> dict[str, Any]:
    """The config.json of a directory, or of a model on the hub.

    Args:
        source: a directory, or a name on the hub that may be pinned (``NAME@REVISION``).
        description: names the model in messages.

    Raises:
        UserError: there is no config.json, or it is not a JSON object.
    """
    path = local_files(source, "model", description, CONFIG) / "config.json"
    if not path.is_file():
        raise UserError(f"{description} cannot be loaded: it has no config.json; name a directory of save_pretrained")
    config = read_json(path, "copy or save the model again")
    if not isinstance(config, dict):
        raise UserError(f"{path} is not a JSON object; copy or save the model again")
    return config


def dimension(config: dict[Any, Any], name: str, default: int, description: str) -> int:
    """A size in a model's config, at least 1.

    Args:
        config: the values in its config.json.
        name: of the size; its alternative name in some configs is also accepted.
        default: if the config does not have it.
        description: names the model in messages.

    Raises:
        UserError: it is not a whole number in the valid range.
    """
    value, most = config.get(name, config.get(_ALSO_CALLED.get(name))), _LARGEST.get(name, 2**24)
    value = default if value is None else value
    if type(value) is not int or not 1 <= value <= most:
        raise UserError(
            f"{description} has {name} {value!r:.40} in its config.json; it must be a number from 1 to {most}"
        )
    return value


def check_weights(source: str, description: str, *, finite: bool = True) -> Shapes | None:
    """Check that the safetensors of a model are readable and finite. Nothing is downloaded.

    Args:
        source: a directory, or a name on the hub that may be pinned (``NAME@REVISION``).
        description: names the model in messages.
        finite: whether to read and check the values; otherwise only the headers are read.

    Returns:
        The shapes of all tensors. None for a model on the hub that has no safetensors or none in the local cache.

    Raises:
        UserError: a file is missing, damaged or a pickle, or a tensor has values that are not finite floating-point
            numbers.
    """
    directory = cached_files(source, "model", description, WEIGHTS)
    if directory is None or (not Path(source).is_dir() and not _has_safetensors(directory)):
        return None
    files = _weight_files(directory, description)
    shapes = _read_shapes(files, description)
    if finite:
        _check_finite(files, description)
    return shapes


def fetch_weights(source: str, description: str) -> FetchedModel:
    """The config and weights of a local model, or of a model on the hub, downloaded if they are not in the cache.

    Args:
        source: a directory, or a name on the hub that may be pinned (``NAME@REVISION``).
        description: names the model in messages.

    Raises:
        UserError: the model has no weights on the hub, or they cannot be downloaded.
    """
    directory = local_files(source, "model", description, (*WEIGHTS, *CONFIG))
    if Path(source).is_dir() or _has_safetensors(directory):
        return FetchedModel(directory, is_pickled=False)
    directory = local_files(source, "model", description, (*PICKLED_WEIGHTS, *WEIGHTS, *CONFIG))
    if not any(directory.glob("pytorch_model*.bin")):
        raise UserError(
            f"{description} has neither model.safetensors nor pytorch_model.bin on the hub; name another model"
        )
    return FetchedModel(directory, is_pickled=True)


def _read_shapes(files: list[Path], description: str) -> Shapes:
    """The shapes in the headers of safetensors."""
    shapes: Shapes = {}
    for path in files:
        try:
            with safe_open(path, framework="np") as file:
                for name in file.keys():  # noqa: SIM118  it is not a dict
                    tensor = file.get_slice(name)
                    shapes[name] = tuple(tensor.get_shape())
                    if (kind := tensor.get_dtype()) not in _FLOATS:
                        raise UserError(f"{description} has {name} in {kind}; save it in float32 or bfloat16")
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{description} cannot be loaded: {path.name} is damaged ({error}); copy it again"
            ) from error
    return shapes


def _check_finite(files: list[Path], description: str) -> None:
    for path in files:
        stat = path.stat()
        if (name := _not_finite(path.absolute(), stat.st_size, stat.st_mtime_ns, stat.st_ino)) is not None:
            raise UserError(
                f"{description} has weights in {name} that are NaN or infinite; its training has diverged, "
                "so take an earlier checkpoint"
            )


@lru_cache(maxsize=10_000)
def _not_finite(path: Path, *_: int) -> str | None:
    """The name of the first tensor of a file with a value that is not finite."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    data = np.memmap(path, np.uint8, "r")[8 + length :]
    tensors = ((name, tensor) for name, tensor in header.items() if name != "__metadata__")
    return next((name for name, tensor in tensors if not all(_finite(data, tensor))), None)


def _finite(data: np.ndarray, tensor: dict[str, Any]) -> Iterator[bool]:
    first, last = tensor["data_offsets"]
    for start in range(first, last, _BYTES_AT_ONCE):
        values = data[start : min(start + _BYTES_AT_ONCE, last)].view(_FLOATS[tensor["dtype"]])
        yield bool((values & 0x7F80 != 0x7F80).all() if tensor["dtype"] == "BF16" else np.isfinite(values).all())


def _weight_files(directory: Path, description: str) -> list[Path]:
    if (path := directory / "model.safetensors").is_file():
        return [path]
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        known = read_json(index, "copy or save the model again")
        parts = known.get("weight_map") if isinstance(known, dict) else None
        names = set(parts.values()) if isinstance(parts, dict) and all(map(_is_text, parts.values())) else set()
        for name in sorted(names):
            if Path(name).name != name or not (directory / name).is_file():
                raise UserError(
                    f"{description} cannot be loaded: {index.name} names {name!r:.80}, which is not a file beside it"
                )
        if names:
            return [directory / name for name in sorted(names)]
        raise UserError(f"{description} cannot be loaded: {index.name} names no files; copy or save the model again")
    if pickles := sorted(directory.glob("*.bin")) + sorted(directory.glob("*.pt")) + sorted(directory.glob("*.pkl")):
        raise UserError(
            f"{description} cannot be loaded: its weights are a pickle ({pickles[0].name}), which can run "
            "code; save it as safetensors, with save_pretrained"
        )
    raise UserError(f"{description} cannot be loaded: it has no model.safetensors; save it there with save_pretrained")


def _has_safetensors(directory: Path) -> bool:
    return any((directory / name).is_file() for name in WEIGHTS[:2])


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
