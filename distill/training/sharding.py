"""FSDP2 (torch's ``fully_shard``): each process holds a shard of the weights, gradients and optimizer states.

Each block of the model is an FSDP group. Its weights are gathered for its forward pass, freed, and gathered again for
its backward pass, which then adds its gradient to the shards. While a block runs, the next one is gathered. Everything
outside the blocks, with the embedding, is one more group, which stays gathered from the forward to the backward pass.

FSDP gathers the weights of a module when the module is called, but ``distill.models.t5_forward`` reads the weights of
a block without that call. Each group is therefore a module of its own around the block, which calls a function with the
weights gathered. ``shard`` gives each block a method that does so, and ``t5_forward.call`` uses it. The model's own
modules have no hooks, so it can be trained again after ``unshard``.

FSDP's policy for mixed precision is not used. It would round all parameters of a group, but norms, routers and the
gradients' sums are in float32 (section 2.4 of the paper). As in one process, weights are gathered in float32, and the
forward pass casts those of products.

The experts of a Switch layer are never gathered. They are shards too, but each shard is whole experts, and the layer
sends tokens to them (``teachers.divided``).
"""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from distill.models.t5_forward import CALL, bias_table
from distill.training.train_modules import TrainModule

DIVIDE = "divide"  # the method of a Switch layer that keeps only the experts of this process
States = dict[int, dict[str, torch.Tensor]]  # of an optimizer: parameter index -> name -> value


def fsdp_requested() -> bool:
    """Whether ``accelerate launch --use_fsdp`` started this process."""
    return parse_flag_from_env("ACCELERATE_USE_FSDP")


class _Group(nn.Module):
    """A module whose call gathers the weights of ``owner`` for a function."""

    def __init__(self, owner: nn.Module):
        super().__init__()
        self.owner = owner

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


class _Root(nn.Module):
    """``objective`` with its groups, of which FSDP finds only those below the module that is called.

    A call runs ``objective`` on a batch, or another ``function`` of its model on any arguments.
    """

    def __init__(self, objective: nn.Module, groups: list[_Group]):
        super().__init__()
        self.objective, self.groups = objective, nn.ModuleList(groups)

    def forward(self, *arguments: Any, function: Callable[..., Any] | None = None) -> Any:
        return (function or self.objective)(*arguments)


def shard(objective: TrainModule, device: torch.device) -> nn.Module:
    """Shard the parameters of ``objective`` in place. They must be equal in all processes.

    Args:
        objective: on any device. ``device`` never holds more than the shards and one group.
        device: of the shards.

    Returns:
        The module to call instead of ``objective``.
    """
    # Nothing changes the output of a block in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    stacks: list[Any] = [objective.model.encoder, objective.model.decoder]  # transformers does not annotate them
    blocks = [_Group(block) for stack in stacks for block in stack.block]
    # All blocks of a stack use the position bias of the first block, which must not be freed after it.
    groups = [*(_Group(bias_table(stack)) for stack in stacks), *blocks]
    root = _Root(objective, groups)
    taken = _divide_experts(objective, mesh)
    for module in (*groups, root):
        fully_shard(module, mesh=mesh, ignored_params=taken)
        module.set_force_sum_reduction_for_comms(True)  # type: ignore[operator]  # gloo cannot average
        taken |= set(module.parameters())
    for group, following in pairwise(blocks):
        group.set_modules_to_forward_prefetch([following])  # type: ignore[operator]
    for group in groups:
        setattr(group.owner, CALL, partial(group))
    return root


def _divide_experts(objective: nn.Module, mesh: DeviceMesh) -> set[nn.Parameter]:
    """Divide the experts of all Switch layers; returns their parameters, which no group gathers."""
    found = set[nn.Parameter]()
    for module in objective.modules():
        if divide := getattr(module, DIVIDE, None):
            divide(mesh)
            found |= {part for part in module.parameters() if isinstance(part, DTensor)}
    return found


@contextmanager
def callable_model(root: nn.Module, model: nn.Module) -> Iterator[None]:
    """Within the block, ``distill.models.t5_forward.hidden_states`` runs ``model``, if ``shard`` has sharded it.

    Every process must enter the block, and run as many forward passes as all others.
    """
    if not isinstance(root, _Root):
        yield
        return
    setattr(model, CALL, lambda function, *arguments: root(*arguments, function=function))
    try:
        yield
    finally:
        delattr(model, CALL)
        root.reshard()  # type: ignore[operator]  # a forward pass keeps the weights of the root for a backward pass


@contextmanager
def gathered_parameters(objective: TrainModule, keep: bool = True) -> Iterator[None]:
    """Gather the full parameters of ``objective`` for reading within the block. Every process must enter the block.

    They are in the memory of the machine. A process with ``keep`` false takes part and holds one full parameter at a
    time.
    """
    if not _is_sharded(objective):
        yield
        return
    plain = _gather(objective, keep)  # state_dict() would undo torch's own unshard
    if not keep:
        yield
        return
    calls = _replace(objective, plain)
    try:
        yield
    finally:
        _replace(objective, {parameter: part for part, parameter in plain.items()})
        for module, call in calls:
            setattr(module, CALL, call)


def unshard(objective: TrainModule, device: torch.device | None) -> None:
    """Give ``objective`` full, plain parameters permanently. Every process must call this function.

    Args:
        objective: sharded or not.
        device: of the parameters. None: this process does not need them, and they lose their values (device meta).
    """
    if not _is_sharded(objective):
        return
    values = _gather(objective, keep=device is not None)
    for part in objective.parameters() if device is None else ():
        values[part] = nn.Parameter(torch.empty(part.shape, dtype=part.dtype, device="meta"))
    _replace(objective, values)
    if device is not None:
        objective.to(device)


def leave_process_group() -> None:
    """Leave the process group, if there is one. Call this at the end of the program.

    gloo's threads hold the tensors of the last messages until they acquire the GIL. A thread that requests it while
    Python shuts down aborts the process. If a device mesh still refers to the group, destroying the group does not join
    the threads, so this function also waits.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        time.sleep(0.5)  # releases the GIL


@torch.no_grad()
def copy_into(target: torch.Tensor, values: torch.Tensor) -> None:
    """Copy ``values`` into ``target``, of which this process may hold a shard.

    Args:
        target: a plain tensor or a DTensor.
        values: the full tensor, equal in all processes.

    Raises:
        ValueError: the shapes differ.
    """
    if target.shape != values.shape:
        raise ValueError(f"{tuple(values.shape)} does not fit into {tuple(target.shape)}")
    target.copy_(_part(values, target))


def gathered_states(optimizer: torch.optim.Optimizer, keep: bool) -> States:
    """The full states of ``optimizer``, gathered one at a time.

    Every process must call this function. Those with ``keep`` false return an empty dict.
    """
    found: States = {}
    for index, states in optimizer.state_dict()["state"].items():
        for name, value in states.items():
            value = value.full_tensor().cpu() if isinstance(value, DTensor) else value
            if keep:
                found.setdefault(index, {})[name] = value
    return found


def local_states(states: States, optimizer: torch.optim.Optimizer) -> States:
    """This process's shards of the full ``states``. A state is sharded like its parameter if its size allows it."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        index: {name: _part(value, parameters[index]) for name, value in values.items()}
        for index, values in states.items()
    }


def _part(value: torch.Tensor, parameter: Any) -> torch.Tensor:
    if not isinstance(parameter, DTensor) or not value.ndim:
        return value
    [placement] = parameter.placements
    assert isinstance(placement, Shard)  # FSDP and ``teachers.divided`` shard one dimension
    fits = value.shape[placement.dim] == parameter.shape[placement.dim]
    placements = [placement if fits else Replicate()]
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, placements, src_data_rank=None)


def _is_sharded(objective: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in objective.parameters())


def _gather(objective: nn.Module, keep: bool) -> dict[nn.Parameter, nn.Parameter]:
    """Each sharded parameter, and its full parameter on the CPU in separate storage, which safetensors requires.

    The result is empty unless ``keep`` is true.
    """
    whole = {}
    for part in objective.parameters():
        values = part.detach()
        assert isinstance(values, DTensor)  # all parameters of a sharded module are
        full = values.full_tensor()
        if keep:
            whole[part] = nn.Parameter(full.to("cpu", copy=True))
    return whole


def _replace(objective: nn.Module, others: dict[nn.Parameter, nn.Parameter]) -> list[tuple[nn.Module, Any]]:
    """Replace all parameters, and remove the methods that gather those of a group; returns modules and methods."""
    calls = []
    for module in objective.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            module.register_parameter(name, others[parameter])
        if hasattr(module, CALL):
            calls.append((module, getattr(module, CALL)))
            delattr(module, CALL)
    return calls
