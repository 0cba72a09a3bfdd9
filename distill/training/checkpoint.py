"""Everything that a killed run needs to go on: weights and optimizer in safetensors, the rest in JSON.

A checkpoint carries the SHA-256 of its files. Two are kept, so that a damaged one has one before it.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file, save_model
from torch import nn

from distill.errors import UserError
from distill.io.files import check_digests, file_digest, new_directory, read_record, write_record
from distill.training.sharding import States, copy_into, local_states

MAX_CHECKPOINTS = 2
_HINT = "the checkpoint before it is used"
_TENSORS = ("model.safetensors", "optimizer.safetensors")


class Progress(NamedTuple):
    """Where a run is, besides its weights: state.json."""

    step: int = 0  # that the weights have taken
    restarts: int = 0  # each of which halved the learning rate
    restarted_here: bool = False  # whether the last of them went back to this step
    norms: tuple[float, ...] = ()  # of the last gradients, which say what an explosion is


def save_checkpoint(directory: Path, progress: Progress, model: nn.Module, states: States) -> Path:
    """Write ``directory``/step-<step>, then remove all others but the one before. A kill in between loses nothing.

    Args:
        model: with all of its weights.
        states: of the optimizer, from ``distill.training.sharding.gathered_states``.

    Raises:
        DiskFull: the checkpoints are what they were before.
    """
    path = directory / f"step-{progress.step:08d}"
    tensors = {f"{index}.{name}": value for index, values in states.items() for name, value in values.items()}
    with new_directory(path, needed=_bytes_of(model, tensors)) as tmp_dir:
        save_model(model, str(tmp_dir / "model.safetensors"))
        save_file({name: value.contiguous() for name, value in tensors.items()}, tmp_dir / "optimizer.safetensors")
        _write_state(tmp_dir, progress)
    before = [other for other in checkpoints(directory) if other < path]
    for other in set(checkpoints(directory)) - {
        path,
        *before[1 - MAX_CHECKPOINTS :],
    }:  # a later one is of an attempt that was given up
        shutil.rmtree(other)
    return path


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Restore weights and optimizer in place from a checkpoint that ``newest_checkpoint`` found whole.

    However many processes wrote it, and however many there are: each takes its own part.

    Raises:
        ValueError, KeyError: it is that of another model.
    """
    parameters, missing = dict(model.named_parameters(remove_duplicate=False)), set(model.parameters())
    for name, values in load_file(path / "model.safetensors").items():
        copy_into(parameters[name], values)
        missing.discard(parameters[name])
    if missing:
        raise ValueError(f"{path / 'model.safetensors'} lacks {len(missing)} parameters")
    states: States = {}
    for name, value in load_file(path / "optimizer.safetensors").items():
        index, _, key = name.partition(".")
        states.setdefault(int(index), {})[key] = value
    own = local_states(states, optimizer)
    optimizer.load_state_dict({"state": own, "param_groups": optimizer.state_dict()["param_groups"]})
    return _read_state(path)[0]


def newest_checkpoint(
    directory: Path, say: Callable[[str], None] = lambda text: None, before: Path | None = None
) -> Path | None:
    """The newest checkpoint in ``directory``, or the newest ``before`` one, whose files are those that were written.

    ``say`` hears of damaged ones.
    """
    for path in reversed(checkpoints(directory)):
        if before and path >= before:
            continue
        try:
            check_digests(path, _read_state(path)[1], _HINT)
        except UserError as error:
            say(str(error))
        else:
            return path
    return None


def restart_point(directory: Path) -> Path | None:
    """The last good checkpoint; the one before it, where there is one, if training has gone back to it in vain."""
    newest = newest_checkpoint(directory)
    if newest and _read_state(newest)[0].restarted_here:
        return newest_checkpoint(directory, before=newest) or newest
    return newest


def mark_restart(path: Path, restarts: int) -> None:
    """Note in a checkpoint that training goes on from it for the ``restarts``-th time; later ones are removed."""
    _write_state(path, _read_state(path)[0]._replace(restarts=restarts, restarted_here=True))
    for later in checkpoints(path.parent):
        if later > path:
            shutil.rmtree(later)


def remove_unfinished(directory: Path) -> None:
    """Remove what a killed process had begun to write."""
    for begun in directory.glob(".step-*"):
        shutil.rmtree(begun, ignore_errors=True)


def checkpoints(directory: Path) -> list[Path]:
    """Checkpoints in ``directory``, oldest first."""
    return sorted(directory.glob("step-*"))


def _bytes_of(model: nn.Module, tensors: dict[str, torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in [*model.parameters(), *tensors.values()])


def _write_state(directory: Path, progress: Progress) -> None:
    digests = {name: file_digest(directory / name) for name in _TENSORS}
    write_record(directory / "state.json", {**progress._asdict(), "sha256": digests})


def _read_state(path: Path) -> tuple[Progress, dict[str, str]]:
    """And the digests of the other files."""
    state = read_record(path / "state.json", _HINT)
    digests = state.pop("sha256")
    return Progress(**{**state, "norms": tuple(state["norms"])}), digests
