"""Load a model with transformers, once every fault that can be known beforehand has been looked for."""

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from distill.errors import UserError
from distill.io.hub_files import CONFIG, local_files
from distill.models.directory import FetchedModel, Shapes, fetch_weights

Config = TypeVar("Config", bound=PreTrainedConfig)
Model = TypeVar("Model", bound=PreTrainedModel)

_HINT = "check that config.json belongs to these weights"


def fetch_checked(source: str, description: str, check: Callable[[], object]) -> FetchedModel:
    """The files of a model that ``check`` has accepted.

    Args:
        source: a directory, or a name on the hub that may be pinned (``NAME@REVISION``).
        description: names the model in messages.
        check: raises UserError where ``source`` cannot be loaded; the same function as the command line calls.

    Raises:
        UserError: ``check`` does, or the hub does not give the files.
    """
    check()  # before anything is downloaded
    fetched = fetch_weights(source, description)
    if str(fetched.directory) != source:
        check()  # now of the weights too
    return fetched


def read_config(cls: type[Config], source: str, description: str) -> Config:
    """The config.json of a directory, or of a model on the hub, as transformers' ``cls`` reads it.

    Raises:
        UserError: there is none, or transformers cannot read it.
    """
    directory = local_files(source, "model", description, CONFIG)
    try:
        return cls.from_pretrained(directory)
    except Exception as error:  # transformers raises many kinds; each means that there is no config to use
        raise UserError(f"{description} cannot be loaded: {' '.join(str(error).split())[:300]}") from error


def load_fetched(cls: type[Model], fetched: FetchedModel, description: str, **settings: Any) -> tuple[Model, set[str]]:
    """A model in float32, and which of the tensors that its files may leave out they do leave out.

    Args:
        settings: of ``_load``.

    Raises:
        UserError: it cannot be loaded; a tensor is missing, too many or of another shape; or one of a pickle is not
            finite: those of safetensors have been checked.
    """
    # Pickles are read with weights_only, which is the default.
    settings |= {"dtype": torch.float32, "use_safetensors": None if fetched.is_pickled else True}
    model, missing = _load(cls, fetched.directory, description, **settings)
    if fetched.is_pickled:
        for name, weight in model.named_parameters():
            if not weight.isfinite().all():
                raise UserError(f"{description} has weights in {name} that are NaN or infinite; take another")
    return model, missing


def load_shapes(cls: type[Model], shapes: Shapes, description: str, **settings: Any) -> Model:
    """The model of these tensors, without their values.

    Args:
        settings: of ``_load``, with the model's ``config``.

    Raises:
        UserError: it cannot be loaded, or a tensor is missing, too many or of another shape.
    """
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    return _load(cls, None, description, state_dict=tensors, device_map="meta", **settings)[0]


def _load(
    cls: type[Model],
    directory: Path | None,
    description: str,
    *,
    may_lack: Collection[str] = (),
    may_have_more: bool = False,
    **settings: Any,
) -> tuple[Model, set[str]]:
    """Load a model whose tensors are those of its config, by transformers' own report of the loading.

    Args:
        may_lack: tensors that may be missing.
        may_have_more: whether there may be tensors that the model does not have.
        settings: of ``from_pretrained``.
    """
    settings |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        loaded: Any = cls.from_pretrained(directory, **settings)
        model, report = loaded  # a pair because of output_loading_info
    except MemoryError:
        raise
    except Exception as error:  # transformers raises many kinds; each means that this model cannot be used
        raise UserError(f"{description} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    _check_names(description, "missing", set(report["missing_keys"]) - set(may_lack))
    if not may_have_more:
        _check_names(description, "unexpected", report["unexpected_keys"])
    for name, found, expected in sorted(report["mismatched_keys"]):
        raise UserError(f"{description} has {name} of shape {tuple(found)}, its config says {tuple(expected)}; {_HINT}")
    return model, set(report["missing_keys"])


def _check_names(description: str, problem: str, names: Iterable[str]) -> None:
    if found := sorted(names):
        raise UserError(
            f"{description} has {len(found)} {problem} tensors for its config, such as {found[0]:.100}; {_HINT}"
        )
