"""Checks of a model's directory before loading: its config and its weights.

Imports torch only for ``.bin`` files.
"""

from pathlib import Path
from typing import Any

from distill.errors import UserError
from distill.io.files import read_json
from distill.io.hub_files import CONFIG, PICKLED_WEIGHTS, WEIGHTS, HubFilesUnavailable, cached_files, local_files
from distill.models.remote_weights import remote_tensors
from distill.models.stored_tensors import read_headers
from distill.models.verify import verify
from distill.models.weight_files import INDEXES, SINGLE_FILES, StoredTensors

_ALSO_CALLED = {"d_model": "hidden_size", "num_heads": "num_attention_heads", "num_layers": "num_hidden_layers"}
_LARGEST = {"num_layers": 1024, "num_decoder_layers": 1024, "num_experts": 4096}


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


def check_weights(source: str, description: str, *, finite: bool = True) -> StoredTensors | None:
    """Check that the weight files of a model are readable and finite. Nothing is downloaded.

    Args:
        source: a directory, or a name on the hub that may be pinned (``NAME@REVISION``).
        description: names the model in messages.
        finite: whether to read and check the values; otherwise only the headers are read.

    Returns:
        The tensors of all files. For a model on the hub that is not in the local cache, they are read by range requests
        and values are not checked; None if the hub does not answer.

    Raises:
        UserError: a file is missing or damaged, a ``.bin`` file holds more than tensors, or a tensor has values that
            are not finite floating-point numbers.
    """
    directory = cached_weights(source, description)
    if directory is None:
        return _remote_headers(source, description)
    tensors = read_headers(directory, description)
    if finite:
        weight_digests(directory, tensors, description)
    return tensors


def weight_digests(directory: Path, tensors: StoredTensors, description: str) -> dict[str, str]:
    """SHA-256 of each weight file, by name, after a check that all values are finite.

    Args:
        directory: of the model.
        tensors: all its tensors.
        description: names the model in messages.

    Raises:
        UserError: a value is not finite.
    """
    digests = {}
    for file in sorted({tensor.file for tensor in tensors.values()}):
        digests[file], not_finite = verify(directory / file, tensors, description)
        if not_finite is not None:
            raise UserError(
                f"{description} has weights in {not_finite} that are NaN or infinite; its training has diverged, "
                "so take an earlier checkpoint"
            )
    return digests


def cached_weights(source: str, description: str) -> Path | None:
    """A local directory, or the directory of a model in the hub's cache. None if the cache may lack some weights.

    Raises:
        UserError: the source does not exist.
    """
    for files in (WEIGHTS, PICKLED_WEIGHTS):
        directory = cached_files(source, "model", description, files)
        if directory is not None and (Path(source).is_dir() or _has_weights(directory)):
            return directory
    return None


def fetch_weights(source: str, description: str) -> Path:
    """The directory of a local model, or of a model on the hub, downloaded if it is not in the cache.

    If a model on the hub has safetensors, its ``.bin`` files are not downloaded.

    Args:
        source: a directory, or a name on the hub that may be pinned (``NAME@REVISION``).
        description: names the model in messages.

    Raises:
        UserError: the model has no weights on the hub, or they cannot be downloaded.
    """
    for files in (WEIGHTS, (*PICKLED_WEIGHTS, *WEIGHTS)):
        directory = local_files(source, "model", description, (*files, *CONFIG))
        if Path(source).is_dir() or _has_weights(directory):
            return directory
    raise UserError(f"{description} has neither {' nor '.join(SINGLE_FILES)} on the hub; name another model")


def _remote_headers(source: str, description: str) -> StoredTensors | None:
    try:
        remote = remote_tensors(source, description)
    except HubFilesUnavailable:
        return None
    return None if remote is None else remote.tensors


def _has_weights(directory: Path) -> bool:
    return any((directory / name).is_file() for name in (*SINGLE_FILES, *INDEXES))
