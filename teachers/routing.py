"""A teacher's routing of held-out text: expert load, dropped tokens and router entropy of each Switch layer."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import nn

from teachers.build import short_name, switch_layers
from teachers.switch_layer import RoutingStatistics

COLLAPSED = 0.999  # share of the tokens on one expert at which a layer counts as collapsed


class RoutingSummary(NamedTuple):
    """Means over forward passes, per layer; L Switch layers, E experts."""

    layers: list[str]  # "encoder.1", "decoder.3"
    load: torch.Tensor  # [L, E], share of the tokens that choose each expert, before dropping; rows add up to 1
    dropped_fraction: torch.Tensor  # [L]
    entropy: torch.Tensor  # [L], nats

    def overall_metrics(self) -> dict[str, float]:
        """Means over all layers; ``load_max`` is the largest load of an expert as a multiple of an equal share."""
        return {
            "dropped_fraction": float(self.dropped_fraction.mean()),
            "router_entropy": float(self.entropy.mean()),
            "load_max": float(self.load.max()) * self.load.shape[1],
        }

    def collapse(self) -> str | None:
        """A message if a layer routes all tokens to one of several experts, otherwise None."""
        share, expert = self.load.max(-1)
        if self.load.shape[1] == 1 or share.max() < COLLAPSED:
            return None
        layer = int(share.argmax())
        return f"all tokens of {self.layers[layer]} go to expert {int(expert[layer])}"

    def layer_metrics(self) -> dict[str, float]:
        """All figures per layer; the load of each expert is a multiple of an equal share."""
        found: dict[str, float] = {}
        for number, layer in enumerate(self.layers):
            found[f"routing/{layer}/dropped_fraction"] = float(self.dropped_fraction[number])
            found[f"routing/{layer}/router_entropy"] = float(self.entropy[number])
            loads = (self.load[number] * self.load.shape[1]).tolist()
            found |= {f"routing/{layer}/load/expert{expert:03d}": load for expert, load in enumerate(loads)}
        return found


@contextlib.contextmanager
def measure_routing(model: nn.Module) -> Iterator[Callable[[Accelerator], RoutingSummary]]:
    """Collect the routing statistics of every Switch layer within the block.

    The yielded function takes the accelerator and averages the statistics over the forward passes of all processes.
    """
    layers = switch_layers(model)
    names = [short_name(name) for name, _ in layers]
    # Sums by layer, on the device of the layer until they are read.
    sums = [torch.zeros(3)] * len(layers)  # dropped fraction, entropy, forward passes
    loads = [torch.zeros(layers[0][1].mlp.num_experts)] * len(layers)

    def collect(number: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: tuple[torch.Tensor, RoutingStatistics]) -> None:
            statistics = output[1]
            one = statistics.load.any().to(statistics.entropy)  # a pass of padding alone does not count
            figures = torch.stack([statistics.dropped_fraction, statistics.entropy, one])
            sums[number] = sums[number].to(figures.device) + figures
            loads[number] = loads[number].to(figures.device) + statistics.load

        return hook

    handles = [layer.mlp.register_forward_hook(collect(number)) for number, (_, layer) in enumerate(layers)]

    def means(accelerator: Accelerator) -> RoutingSummary:
        both = (torch.stack(found).to(accelerator.device) for found in (sums, loads))
        total, load = (accelerator.reduce(found, "sum").cpu() for found in both)
        dropped, entropy, passes = total.unbind(-1)
        return RoutingSummary(names, load / load.sum(-1, keepdim=True), dropped / passes, entropy / passes)

    try:
        yield means
    finally:
        for handle in handles:
            handle.remove()
