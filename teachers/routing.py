"""How a teacher routes held-out text: load, dropped tokens and entropy, averaged over forward passes."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import nn

from teachers.model import switch_layers


@contextlib.contextmanager
def measured_routing(model: nn.Module) -> Iterator[Callable[[], dict[str, float]]]:
    """Collect the statistics of every Switch layer while the block runs; the yielded function returns the means.

    Its keys: ``dropped_fraction`` and ``router_entropy`` (nats), over all layers; ``load_max``, the share of tokens
    that the busiest expert of any layer gets, as a multiple of an equal share.
    """
    seen: list[torch.Tensor] = []
    loads: dict[str, torch.Tensor] = {}

    def collect(name: str):
        def hook(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
            statistics = module.statistics
            seen.append(torch.stack([statistics.dropped_fraction, statistics.entropy]).cpu())
            loads[name] = loads.get(name, 0) + statistics.load.cpu()

        return hook

    handles = [layer.register_forward_hook(collect(name)) for name, layer in switch_layers(model)]

    def means() -> dict[str, float]:
        if not seen:
            return {}
        dropped, entropy = torch.stack(seen).mean(0).tolist()
        busiest = max(float(load.max() / load.sum() * len(load)) for load in loads.values())
        return {"dropped_fraction": dropped, "router_entropy": entropy, "load_max": busiest}

    try:
        yield means
    finally:
        for handle in handles:
            handle.remove()
