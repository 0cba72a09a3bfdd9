"""Expert parallelism (section 5.4 of the paper): each process holds a share of the experts of every Switch layer.

Each process routes the tokens of its own batch and counts capacity in them, as if it had all experts. In every Switch
layer, tokens are sent to the processes that hold their experts, and the outputs are sent back (all-to-all); gradients
take the same way in reverse. So outputs, losses and gradients are those of the undivided teacher up to rounding,
dropped tokens included, and all processes must run the same number of forward passes at the same time.

The experts of a frozen teacher are plain tensors of this process's share. Those of a teacher in training are DTensors,
which are divided in the same way along their first dimension: optimizers, gradient clipping and checkpoints treat them
like the shards of FSDP2 (``distill.training.sharding``).

N tokens, D d_model, E experts, P processes; n tokens sent, m tokens received, e experts of this process.
"""

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from distill.models.t5_forward import compute_dtype
from teachers.experts import Inner, Routing, run_experts, sort_by_expert


def share_of_experts(num_experts: int, process: int, processes: int) -> range:
    """The experts that a process holds, in [0, num_experts), as ``torch.chunk`` divides them.

    All processes hold the same number, but the last ones may hold fewer or none.
    """
    size = -(-num_experts // processes)
    return range(min(process * size, num_experts), min((process + 1) * size, num_experts))


def divided_parameter(own: torch.Tensor, num_experts: int, mesh: DeviceMesh) -> nn.Parameter:
    """The experts [E, ...] that the processes of ``mesh`` train, as a DTensor on its devices.

    Args:
        own: the experts of this process [e, ...].
        num_experts: E, those of all processes.
        mesh: one-dimensional; of all processes.
    """
    processes, shape = mesh.size(), torch.Size((num_experts, *own.shape[1:]))
    own, stride = own.detach().to(mesh.device_type), (shape[1:].numel(), *own.stride()[1:])
    part = nn.Parameter(DTensor.from_local(own, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride))
    # An expert gets the gradients of the tokens of all processes: their sum, where all other gradients are means.
    part.register_hook(lambda gradient: gradient / processes)
    return part


Weight = TypeVar("Weight", torch.Tensor, torch.Tensor | None)


def own_experts(weight: Weight) -> Weight:
    """The experts that this process holds, [e, ...], of a weight that may be a DTensor."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


def run_divided_experts(
    tokens_ND: torch.Tensor,
    routing: Routing,
    capacity: int | torch.Tensor | None,
    inner: Inner,
    wi: torch.Tensor,
    wi_gate: torch.Tensor | None,
    wo: torch.Tensor,
) -> torch.Tensor:
    """Run each token's expert on it, in the process that holds the expert. Every process must call this function.

    Args:
        tokens_ND, routing, capacity, inner: as for ``teachers.experts.run_experts``; all of this process's batch.
        wi, wi_gate, wo: of the experts that this process holds, [e, ...].

    Returns:
        [N, D], as from ``run_experts``. Tokens that are dropped or have no expert are not sent; their output is zero.
    """
    tokens_ND = tokens_ND.to(compute_dtype(tokens_ND))
    process, processes = dist.get_rank(), dist.get_world_size()
    experts = len(routing.load)
    taken_N = routing.expert < experts
    load_E = routing.load
    if capacity is not None:
        taken_N &= routing.position < capacity
        load_E = load_E.clamp(max=int(capacity))
    sent_n = routing.order[taken_N[routing.order]]  # sorted by expert, so by process too
    load_PE = load_E.new_empty(processes, experts)
    dist.all_gather(list(load_PE.unbind()), load_E)
    shares = [share_of_experts(experts, other, processes) for other in range(processes)]
    own_Pe = load_PE[:, shares[process].start : shares[process].stop]
    sizes_out = [int(load_E[share.start : share.stop].sum()) for share in shares]
    sizes_in = own_Pe.sum(1).tolist()

    received_mD = _exchange(tokens_ND[sent_n], sizes_out, sizes_in)
    # The tokens of each process are sorted by expert.
    expert_m = torch.arange(len(wi), device=wi.device).repeat(processes).repeat_interleave(own_Pe.flatten())
    # Without any token too: an expert without a gradient would keep the optimizers of the processes from agreeing.
    output_mD = run_experts(received_mD, sort_by_expert(expert_m, len(wi)), None, inner, wi, wi_gate, wo)
    return torch.zeros_like(tokens_ND).index_copy(0, sent_n, _exchange(output_mD, sizes_in, sizes_out))


class _Exchange(torch.autograd.Function):
    """Send consecutive rows to the processes, in their order, and the gradients of the received rows back."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, sizes_out: list[int], sizes_in: list[int]) -> torch.Tensor:
        ctx.sizes_out, ctx.sizes_in = sizes_out, sizes_in
        return _all_to_all(rows, sizes_out, sizes_in)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _all_to_all(gradient, ctx.sizes_in, ctx.sizes_out), None, None


def _exchange(rows: torch.Tensor, sizes_out: list[int], sizes_in: list[int]) -> torch.Tensor:
    """The rows that the processes have sent to this one, in their order, for ``rows`` of this one."""
    result: torch.Tensor = _Exchange.apply(rows, sizes_out, sizes_in)
    return result


def _all_to_all(rows: torch.Tensor, sizes_out: list[int], sizes_in: list[int]) -> torch.Tensor:
    received = rows.new_empty(sum(sizes_in), rows.shape[1])
    dist.all_to_all_single(received, rows.contiguous(), sizes_in, sizes_out)
    return received
