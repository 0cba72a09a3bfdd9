"""Checkpoints, from which a killed run resumes: weights and optimizer state in safetensors, the rest in JSON.

A checkpoint stores the SHA-256 of its files. Two checkpoints are kept. If the last one is damaged, the run resumes from
the one before it.
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
    """The progress of a run: the content of state.json."""

    step: int = 0  # optimizer steps so far
    restarts: int = 0  # restarts so far; each halved the learning rate
    restarted_here: bool = False  # whether the last restart went back to this step
    norms: tuple[float, ...] = ()  # recent gradient norms, for the detection of an explosion


def save_checkpoint(directory: Path, progress: Progress, model: nn.Module, states: States) -> Path:
    """Write ``directory``/step-<step>, then remove all checkpoints except it and the previous one.

    A process that is killed at any point leaves the previous checkpoint usable.

    Args:
        directory: of the run's checkpoints.
        progress: becomes state.json.
        model: with its full weights.
        states: the optimizer's states, from ``distill.training.sharding.gathered_states``.

    Raises:
        DiskFull: there is no space; the existing checkpoints are unchanged.
    """
    path = directory / f"step-{progress.step:08d}"
    tensors = {f"{index}.{name}": value for index, values in states.items() for name, value in values.items()}
    with new_directory(path, needed=_bytes_of(model, tensors)) as tmp_dir:
        save_model(model, str(tmp_dir / "model.safetensors"))
        save_file({name: value.contiguous() for name, value in tensors.items()}, tmp_dir / "optimizer.safetensors")
        _write_state(tmp_dir, progress)
    before = [other for other in checkpoints(directory) if other < path]
    # Later checkpoints belong to an attempt that diverged.
    for other in set(checkpoints(directory)) - {path, *before[1 - MAX_CHECKPOINTS :]}:
        shutil.rmtree(other)
    return path


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Restore weights and optimizer in place from a checkpoint that ``newest_checkpoint`` has verified.

    The number of processes may differ from the one that wrote the checkpoint. Each process loads its own shard.

    Raises:
        ValueError, KeyError: the checkpoint is of another model.
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
    """The newest undamaged checkpoint in ``directory``, or None.

    Args:
        directory: of the run's checkpoints.
        say: is called with a message for each damaged checkpoint.
        before: if given, only checkpoints older than this one are considered.
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
    """The checkpoint to restart from: the newest one, or the previous one if training has diverged again after it.

    If there is no previous one, the newest is used again.
    """
    newest = newest_checkpoint(directory)
    if newest and _read_state(newest)[0].restarted_here:
        return newest_checkpoint(directory, before=newest) or newest
    return newest


def mark_restart(path: Path, restarts: int) -> None:
    """Record in a checkpoint that the run's ``restarts``-th restart begins there; remove later checkpoints."""
    _write_state(path, _read_state(path)[0]._replace(restarts=restarts, restarted_here=True))
    for later in checkpoints(path.parent):
        if later > path:
            shutil.rmtree(later)


def checkpoints(directory: Path) -> list[Path]:
    """The checkpoints in ``directory``, oldest first."""
    return sorted(directory.glob("step-*"))


def _bytes_of(model: nn.Module, tensors: dict[str, torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in [*model.parameters(), *tensors.values()])


def _write_state(directory: Path, progress: Progress) -> None:
    digests = {name: file_digest(directory / name) for name in _TENSORS}
    write_record(directory / "state.json", {**progress._asdict(), "sha256": digests})


def _read_state(path: Path) -> tuple[Progress, dict[str, str]]:
    """The progress, and the SHA-256 of the other files by name."""
    state = read_record(path / "state.json", _HINT)
    digests = state.pop("sha256")
    return Progress(**{**state, "norms": tuple(state["norms"])}), digests
