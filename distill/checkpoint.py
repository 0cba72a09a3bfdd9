"""Everything that a killed run needs to go on: weights and optimizer in safetensors, the step in JSON."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn

from distill.files import new_directory, write_json


def save_checkpoint(directory: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> Path:
    """Write ``directory``/step-<step>, then remove older checkpoints. Nothing is lost if killed in between."""
    path = directory / f"step-{step:08d}"
    with new_directory(path) as beside:
        save_model(model, str(beside / "model.safetensors"))
        state = optimizer.state_dict()["state"]
        tensors = {f"{index}.{name}": value for index, values in state.items() for name, value in values.items()}
        save_file({name: value.contiguous() for name, value in tensors.items()}, beside / "optimizer.safetensors")
        write_json(beside / "state.json", {"step": step})
    for older in checkpoints(directory):
        if older != path:
            shutil.rmtree(older)
    return path


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore weights and optimizer in place; return the number of steps that they have taken."""
    load_model(model, str(path / "model.safetensors"))
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in load_file(path / "optimizer.safetensors").items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return json.loads((path / "state.json").read_text())["step"]


def checkpoints(directory: Path) -> list[Path]:
    """Whole checkpoints in ``directory``, oldest first."""
    return sorted(directory.glob("step-*"))
