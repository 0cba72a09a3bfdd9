"""FSDP2 (torch's ``fully_shard``): every process keeps its part of the weights, gradients and optimizer states.

A model is one group. Between steps a process holds 1/N of everything; during a step it holds all weights and gradients,
and still 1/N of the optimizer's states. Groups of single blocks would need less, but their weights are gathered when
transformers calls the block, and our forward pass reads the weights without calling it.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

States = dict[int, dict[str, torch.Tensor]]  # of an optimizer, by the number of the parameter and the name


def fsdp_requested() -> bool:
    """Whether ``accelerate launch --use_fsdp`` started this process."""
    return parse_flag_from_env("ACCELERATE_USE_FSDP")


def shard(objective: nn.Module, device: torch.device) -> None:
    """Replace the parameters of ``objective``, equal in all processes, by this process's parts; in place."""
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    fully_shard(objective, mesh=mesh).set_force_sum_reduction_for_comms(True)  # gloo knows no mean


@contextmanager
def gathered_parameters(objective: nn.Module) -> Iterator[None]:
    """Within the block the parameters of ``objective`` are plain and whole, to be read; every process must enter it."""
    if not isinstance(objective, FSDPModule):
        yield
        return
    plain = _gather(objective)  # torch's own unshard is undone by state_dict()
    _replace(objective, plain)
    try:
        yield
    finally:
        _replace(objective, {parameter: part for part, parameter in plain.items()})


def unshard(objective: nn.Module) -> None:
    """Give ``objective`` plain parameters for good. Hooks of torch stay on its model: do not call load_state_dict."""
    if isinstance(objective, FSDPModule):
        _replace(objective, _gather(objective))


def leave_process_group() -> None:
    """Leave the group of processes, if this is one of several; at the end of the program.

    gloo's threads keep the tensors of the last messages until they are given Python's lock. A thread that asks for it
    while Python ends aborts the process, and where a device mesh still knows the group, destroying it joins no thread.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        time.sleep(0.5)  # without Python's lock


@torch.no_grad()
def copy_into(target: torch.Tensor, values: torch.Tensor) -> None:
    """``values``, whole and equal in all processes, into a tensor of that shape, of which this process may have a part.

    Raises:
        ValueError: it has another shape.
    """
    if target.shape != values.shape:
        raise ValueError(f"{tuple(values.shape)} does not fit into {tuple(target.shape)}")
    target.copy_(_part(values, target))


def gathered_states(optimizer: torch.optim.Optimizer, keep: bool) -> States:
    """The states of ``optimizer``, one after the other in full; every process must call it, and some ``keep`` them."""
    found: States = {}
    for index, states in optimizer.state_dict()["state"].items():
        for name, value in states.items():
            value = value.full_tensor().cpu() if isinstance(value, DTensor) else value
            if keep:
                found.setdefault(index, {})[name] = value
    return found


def local_states(states: States, optimizer: torch.optim.Optimizer) -> States:
    """What this process keeps of ``states``, which are whole: a state of a part's shape is shared like the part."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        index: {name: _part(value, parameters[index]) for name, value in values.items()}
        for index, values in states.items()
    }


def _part(value: torch.Tensor, parameter: Any) -> torch.Tensor:
    if not isinstance(parameter, DTensor) or not value.ndim:
        return value
    mesh = parameter.device_mesh
    placements = parameter.placements if value.shape == parameter.shape else [Replicate()]
    return distribute_tensor(value.to(parameter.device), mesh, placements, src_data_rank=None)


def _gather(objective: nn.Module) -> dict[nn.Parameter, nn.Parameter]:
    """Each part, and the parameter that it is a part of, in a storage of its own size, as safetensors wants it."""
    whole = {}
    for part in objective.parameters():
        values = part.detach()
        assert isinstance(values, DTensor)  # as all parameters of a sharded module
        whole[part] = nn.Parameter(values.full_tensor().clone())
    return whole


def _replace(objective: nn.Module, others: dict[nn.Parameter, nn.Parameter]) -> None:
    for module in objective.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            module.register_parameter(name, others[parameter])
