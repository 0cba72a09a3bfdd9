"""Load a model with transformers, once every fault that can be known beforehand has been looked for."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from transformers import PreTrainedModel

from distill.errors import UserError
from distill.models.directory import Fetched, fetch_weights


def fetch_checked(source: str, what: str, check: Callable[[], object]) -> Fetched:
    """The files of a model that ``check`` has accepted.

    Args:
        source: a directory, or a name on the hub that may be pinned (``NAME@REVISION``).
        what: names the model in messages.
        check: raises UserError where ``source`` cannot be loaded; the same function as the command line calls.

    Raises:
        UserError: ``check`` does, or the hub does not give the files.
    """
    check()  # before anything is downloaded
    fetched = fetch_weights(source, what)
    if str(fetched.directory) != source:
        check()  # now of the weights too
    return fetched


def load_fetched(
    cls: type[PreTrainedModel], fetched: Fetched, what: str, **settings: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model in float32, and what transformers reports of its tensors (``missing_keys``, ``unexpected_keys``).

    Raises:
        UserError: it cannot be loaded, or a tensor of a pickle is not finite; those of safetensors have been checked.
    """
    # Pickles are read with weights_only, which is the default.
    settings |= {"dtype": torch.float32, "use_safetensors": None if fetched.is_pickled else True}
    try:
        model, report = cls.from_pretrained(fetched.directory, output_loading_info=True, **settings)
    except MemoryError:
        raise
    except Exception as error:  # transformers raises many kinds; each means that this model cannot be used
        raise UserError(f"{what} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    if fetched.is_pickled:
        for name, weight in model.named_parameters():
            if not weight.isfinite().all():
                raise UserError(f"{what} has weights in {name} that are NaN or infinite; take another")
    return model, report


def check_tensors(what: str, problem: str, names: Iterable[str]) -> None:
    """Raise UserError where ``names`` are tensors that are ``missing`` or ``unexpected``; those of a pickle may be."""
    if found := sorted(map(str, names)):
        raise UserError(
            f"{what} has {len(found)} {problem} tensors for its config, such as {found[0]}; "
            "check that config.json belongs to these weights"
        )
