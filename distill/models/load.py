"""Load a model with transformers, after all checks that are possible without loading it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from distill.errors import UserError
from distill.io.hub_files import CONFIG, local_files
from distill.models.directory import fetch_weights
from distill.models.read_tensors import TensorReader
from distill.models.stored_tensors import read_headers
from distill.models.weight_files import StoredTensors

Config = TypeVar("Config", bound=PreTrainedConfig)
Model = TypeVar("Model", bound=PreTrainedModel)

_HINT = "check that config.json belongs to these weights"


def fetch_checked(source: str, description: str, check: Callable[[], object]) -> Path:
    """The directory with the files of a model that passes ``check``.

    Args:
        source: a directory, or a name on the hub that may be pinned (``NAME@REVISION``).
        description: names the model in messages.
        check: raises UserError if ``source`` cannot be loaded; the command line calls the same function.

    Raises:
        UserError: ``check`` raises it, or the files cannot be downloaded.
    """
    check()  # before anything is downloaded
    directory = fetch_weights(source, description)
    if str(directory) != source:
        check()  # now the weights too
    return directory


def read_config(cls: type[Config], source: str, description: str) -> Config:
    """The config.json of a directory, or of a model on the hub, read by transformers as a ``cls``.

    Raises:
        UserError: there is no config.json, or transformers cannot read it.
    """
    directory = local_files(source, "model", description, CONFIG)
    try:
        return cls.from_pretrained(directory)
    except Exception as error:  # transformers raises many kinds; each means that the config cannot be used
        cause = " ".join(str(error).split())[:300]
        raise UserError(f"{description} cannot be loaded: {cause}; correct its config.json") from error


def load_float32(cls: type[Model], directory: Path, description: str, config: PreTrainedConfig) -> Model:
    """Load a model in float32 from the files in a directory. The values have been checked before.

    Args:
        config: of the model.

    Raises:
        UserError: the model cannot be loaded, or a tensor is missing or of another shape.
    """
    reader = TensorReader.of_directory(directory, read_headers(directory, description))
    tensors = {name: reader.read(name).float() for name in reader.tensors}
    model = _load(cls, description, state_dict=tensors, config=config, dtype=torch.float32)
    if (directory / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(directory)
    return model


def load_shapes(cls: type[Model], tensors: StoredTensors, description: str, config: PreTrainedConfig) -> Model:
    """Build a model with tensors of these shapes on the meta device, without values.

    Args:
        config: of the model.

    Raises:
        UserError: the model cannot be built, or a tensor is missing or of another shape.
    """
    values = {name: torch.empty(tensor.shape, device="meta") for name, tensor in tensors.items()}
    return _load(cls, description, state_dict=values, device_map="meta", config=config)


def _load(cls: type[Model], description: str, **settings: Any) -> Model:
    """Load a model, and check transformers' loading report. Tensors that the model does not have are ignored.

    Args:
        settings: of ``from_pretrained``.
    """
    settings |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        loaded: Any = cls.from_pretrained(None, **settings)
        model, report = loaded  # a pair because of output_loading_info
    except MemoryError:
        raise
    except Exception as error:  # transformers raises many kinds; each means that this model cannot be used
        raise UserError(f"{description} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    # transformers also names the tied copies of a missing weight.
    if missing := sorted(set(report["missing_keys"]) - model.all_tied_weights_keys.keys()):
        raise UserError(
            f"{description} has {len(missing)} missing tensors for its config, such as {missing[0]:.100}; {_HINT}"
        )
    for name, found, expected in sorted(report["mismatched_keys"]):
        raise UserError(f"{description} has {name} of shape {tuple(found)}, its config says {tuple(expected)}; {_HINT}")
    return model
