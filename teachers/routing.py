"""How a teacher routes held-out text: load, dropped tokens and entropy, averaged over forward passes."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from accelerate import Accelerator
from torch import nn

from teachers.model import switch_layers
from teachers.switch_layer import RoutingStatistics


@contextlib.contextmanager
def measured_routing(model: nn.Module) -> Iterator[Callable[[Accelerator], dict[str, float]]]:
    """Collect the statistics of every Switch layer while the block runs; the yielded function averages them.

    It takes the accelerator, whose processes have each seen a part. Keys: ``dropped_fraction`` and
    ``router_entropy`` (nats), over all layers; ``load_max``, the share of tokens that the busiest expert of any
    layer gets, as a multiple of an equal share.
    """
    layers = switch_layers(model)
    sums = torch.zeros(3)  # dropped fraction, entropy, forward passes
    loads = torch.zeros(len(layers), layers[0][1].mlp.num_experts)

    def collect(number: int):
        def hook(module: nn.Module, args: tuple, output: tuple[torch.Tensor, RoutingStatistics]) -> None:
            statistics = output[1]
            sums.add_(
                torch.stack(
                    [statistics.dropped_fraction, statistics.entropy, torch.ones_like(statistics.entropy)]
                ).cpu()
            )
            loads[number].add_(statistics.load.cpu())

        return hook

    handles = [layer.mlp.register_forward_hook(collect(number)) for number, (_, layer) in enumerate(layers)]

    def means(accelerator: Accelerator) -> dict[str, float]:
        dropped, entropy, passes = accelerator.reduce(sums.to(accelerator.device), "sum").tolist()
        load = accelerator.reduce(loads.to(accelerator.device), "sum").cpu()
        busiest = float((load / load.sum(-1, keepdim=True)).max()) * load.shape[1]
        return {"dropped_fraction": dropped / passes, "router_entropy": entropy / passes, "load_max": busiest}

    try:
        yield means
    finally:
        for handle in handles:
            handle.remove()
