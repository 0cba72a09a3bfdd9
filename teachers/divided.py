"""Expert parallelism (section 5.3 of the paper) of a frozen teacher: each process holds a share of the experts.

All other weights are in every process. Each process routes the tokens of its own batch and counts capacity in them, as
if it had all experts. In every Switch layer, tokens are sent to the processes that hold their experts, and the outputs
are sent back (all-to-all). So the outputs are those of the undivided teacher up to rounding, dropped tokens included,
and all processes must run the same number of forward passes at the same time.

N tokens, D d_model, E experts, P processes; n tokens sent, m tokens received, e experts of this process.
"""

import torch
import torch.distributed as dist

from distill.models.t5_forward import compute_dtype
from teachers.experts import Inner, Routing, run_experts, sort_by_expert


def share_of_experts(num_experts: int, process: int, processes: int) -> range:
    """The experts that a process holds, in [0, num_experts). The shares of two processes differ by at most one."""
    return range(num_experts * process // processes, num_experts * (process + 1) // processes)


@torch.no_grad()
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
        [N, D], as from ``run_experts``, without a gradient. Tokens that are dropped or have no expert are not sent.
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

    received_mD = _all_to_all(tokens_ND[sent_n], sizes_out, sizes_in)
    if len(received_mD):
        # The tokens of each process are sorted by expert.
        expert_m = torch.arange(len(wi), device=wi.device).repeat(processes).repeat_interleave(own_Pe.flatten())
        received_mD = run_experts(received_mD, sort_by_expert(expert_m, len(wi)), None, inner, wi, wi_gate, wo)
    output_ND = torch.zeros_like(tokens_ND)
    output_ND[sent_n] = _all_to_all(received_mD, sizes_in, sizes_out)
    return output_ND


def _all_to_all(rows: torch.Tensor, sizes_out: list[int], sizes_in: list[int]) -> torch.Tensor:
    """Send consecutive rows to the processes, in their order; returns the rows that they have sent to this one."""
    received = rows.new_empty(sum(sizes_in), rows.shape[1])
    dist.all_to_all_single(received, rows.contiguous(), sizes_in, sizes_out)
    return received
