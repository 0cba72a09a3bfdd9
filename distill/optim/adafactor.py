"""Adafactor (Shazeer and Stern 2018, algorithm 4), as ``torch.optim.Adafactor`` computes it, for many small tensors.

On small models torch's implementation takes 1.3 to 2 times as long, because it updates one tensor at a time and
synchronises with the device twice per tensor. This one updates tensors of equal shape together and never synchronises.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch.distributed.tensor import DTensor

_SMALL = 2**18  # elements; larger tensors are updated alone, without a copy, and stay in the processor's cache
# torch's defaults.
_FLOOR = torch.finfo(torch.float32).eps
_BETA2_DECAY = -0.8  # the second moments' decay is 1 - step**_BETA2_DECAY
_SMALLEST = 1e-3  # lower bound of a tensor's root mean square in the step size
_CLIP = 1.0  # upper bound of an update's root mean square


class Adafactor(torch.optim.Optimizer):
    """Adafactor with relative step sizes: min(``lr``, 1/sqrt(step)) times the root mean square of the tensor.

    Args:
        params: parameters, or parameter groups.
        lr: learning rate, at least 0.
        weight_decay: decoupled; multiplied by ``lr``.
    """

    def __init__(self, params: Iterable[Any], lr: float, *, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # closures are not supported
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            alike: dict[Any, list[torch.Tensor]] = defaultdict(list)
            for number, parameter in enumerate(group["params"]):
                if parameter.grad is not None:
                    self._start(parameter)
                    # DTensor does not support _foreach_copy_.
                    alone = number if parameter.numel() > _SMALL or isinstance(parameter, DTensor) else None
                    alike[parameter.shape, self.state[parameter]["step"].item(), alone].append(parameter)
            for (_, step, _), parameters in alike.items():
                self._update(parameters, group, int(step) + 1)

    def _start(self, parameter: torch.Tensor) -> None:
        """Create the state of a parameter, with the names of torch.optim.Adafactor."""
        if state := self.state[parameter]:
            return
        state["step"] = torch.tensor(0.0)
        if parameter.ndim > 1:
            state["row_var"] = torch.zeros_like(parameter[..., :1])  # a DTensor's keeps its sharding
            state["col_var"] = torch.zeros_like(parameter[..., :1, :])
        else:
            state["variance"] = torch.zeros_like(parameter)

    def _update(self, parameters: list[torch.Tensor], group: dict[str, Any], step: int) -> None:
        """Update parameters of equal shape and step, stacked along a new first dimension."""
        values = stack(parameters)
        gradients = stack([parameter.grad for parameter in parameters if parameter.grad is not None])
        each = tuple(range(1, values.ndim))
        alpha = min(group["lr"], step**-0.5) * _rms(values, each).clamp_(min=_SMALLEST)
        if group["weight_decay"]:
            values.mul_(1 - group["lr"] * group["weight_decay"])

        squares, share = gradients.square(), step**_BETA2_DECAY
        if values.ndim > 2:
            row = self._moment("row_var", parameters, squares.mean(-1, keepdim=True), share)
            column = self._moment("col_var", parameters, squares.mean(-2, keepdim=True), share)
            scale = row / row.mean(-2, keepdim=True).clamp(min=_FLOOR)
            variance = torch.mul(scale, column, out=squares)
        else:
            variance = self._moment("variance", parameters, squares, share)
        update = torch.clamp(variance, min=_FLOOR**2, out=squares).rsqrt_().mul_(gradients)
        values.sub_(update.mul_(alpha / (_rms(update, each) / _CLIP).clamp_(min=1.0)))

        self._keep(parameters, values, step)

    def _keep(self, parameters: list[torch.Tensor], values: torch.Tensor, step: int) -> None:
        """Store the stacked ``values`` in ``parameters`` and set their step."""
        if len(parameters) > 1:
            torch._foreach_copy_(parameters, list(values))
        for parameter in parameters:
            self.state[parameter]["step"].fill_(step)

    def _moment(self, name: str, parameters: list[torch.Tensor], new: torch.Tensor, share: float) -> torch.Tensor:
        """Move the running means by the fraction ``share`` towards ``new``; return them stacked."""
        states = [self.state[parameter][name] for parameter in parameters]
        moved = stack(states).lerp_(new, share)
        if len(states) > 1:
            torch._foreach_copy_(states, list(moved))
        return moved


def stack(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Stack tensors of equal shape along a new first dimension: a view of a single tensor, a copy of several."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)


def _rms(stacked: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    return torch.linalg.vector_norm(stacked, dim=dims, keepdim=True) / (stacked[0].numel() ** 0.5)
