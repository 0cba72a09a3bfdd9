"""Load a model with transformers, after all checks that are possible without loading it."""

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
    """Fetch the files of a model that passes ``check``.

    Args:
        source: a directory, or a name on the hub that may be pinned (``NAME@REVISION``).
        description: names the model in messages.
        check: raises UserError if ``source`` cannot be loaded; the command line calls the same function.

    Raises:
        UserError: ``check`` raises it, or the files cannot be downloaded.
    """
    check()  # before anything is downloaded
    fetched = fetch_weights(source, description)
    if str(fetched.directory) != source:
        check()  # now the weights too
    return fetched


def read_config(cls: type[Config], source: str, description: str) -> Config:
    """The config.json of a directory, or of a model on the hub, read by transformers as a ``cls``.

    Raises:
        UserError: there is no config.json, or transformers cannot read it.
    """
    directory = local_files(source, "model", description, CONFIG)
    try:
        return cls.from_pretrained(directory)
    except Exception as error:  # transformers raises many kinds; each means that the config cannot be used
        raise UserError(f"{description} cannot be loaded: {' '.join(str(error).split())[:300]}") from error


def load_fetched(cls: type[Model], fetched: FetchedModel, description: str, **settings: Any) -> tuple[Model, set[str]]:
    """Load a model in float32 from files that ``fetch_checked`` has returned.

    Args:
        settings: of ``_load``.

    Returns:
        The model, and the names of the tensors that its files omit, all of them in ``may_lack``.

    Raises:
        UserError: the model cannot be loaded, a tensor is missing, unexpected or of another shape, or a tensor of a
            pickle is not finite. The values of safetensors have been checked before.
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
    """Build a model with tensors of these shapes on the meta device, without values.

    Args:
        settings: of ``_load``, with the model's ``config``.

    Raises:
        UserError: the model cannot be built, or a tensor is missing, unexpected or of another shape.
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
    """Load a model, and check transformers' loading report for missing, unexpected and mismatched tensors.

    Args:
        may_lack: tensors that may be missing.
        may_have_more: whether the files may have tensors that the model does not have.
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
    missing = set(report["missing_keys"]) - model.all_tied_weights_keys.keys()  # the weight itself is named once
    _check_names(description, "missing", missing - set(may_lack))
    if not may_have_more:
        _check_names(description, "unexpected", report["unexpected_keys"])
    for name, found, expected in sorted(report["mismatched_keys"]):
        raise UserError(f"{description} has {name} of shape {tuple(found)}, its config says {tuple(expected)}; {_HINT}")
    return model, missing


def _check_names(description: str, problem: str, names: Iterable[str]) -> None:
    if found := sorted(names):
        raise UserError(
            f"{description} has {len(found)} {problem} tensors for its config, such as {found[0]:.100}; {_HINT}"
        )
