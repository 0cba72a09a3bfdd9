"""The Switch feed-forward layer (section 2 of the paper) and its routing statistics.

N tokens of the batch, D d_model, E experts.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from transformers.activations import ACT2FN

from distill.arguments import require, require_fractions, require_positive, require_sizes
from distill.models.t5_forward import compute_dtype
from teachers.config import MINIMUM_CAPACITY
from teachers.divided import divided_parameter, own_experts, run_divided_experts, share_of_experts
from teachers.experts import run_experts, sort_by_expert


class RoutingStatistics(NamedTuple):
    """Statistics of the unpadded tokens in one forward pass of one layer."""

    load_balancing_loss: torch.Tensor  # scalar, before alpha; 1.0 when uniform (equation 4); has a gradient
    load: torch.Tensor  # [E], fraction of tokens that choose the expert, before dropping (equation 5)
    dropped_fraction: torch.Tensor  # scalar, fraction of tokens beyond their expert's capacity
    entropy: torch.Tensor  # scalar, mean entropy of the router's probabilities, in nats


class SwitchLayer(nn.Module):
    """Route each token to the expert of highest router probability: ``y = p_i(x) * E_i(x)`` (equation 2).

    Tokens beyond an expert's capacity (equation 3), counted in token order over the whole batch, are dropped: their
    output is zero, and only the residual connection passes them on. Padding is neither routed nor counted. The router
    is always computed in float32 (section 2.4, "selective precision").

    E experts.

    Args:
        capacity_factor_train, capacity_factor_eval: capacity is max(4, int(tokens / E * factor)), with the number of
            unpadded tokens of the batch.
        jitter: in training, the router's input is multiplied by uniform noise in [1 - jitter, 1 + jitter]; the
            experts' input is not (appendix C, table 11).
        activation: a name that transformers knows, or ``gated-gelu`` (T5's gated GELU; adds ``wi_gate``).
        dropout: on the output, in training.
        expert_dropout: on the hidden activation inside the experts, in training (section 2.4, table 4).

    Raises:
        ValueError: an argument is out of range, or the activation is unknown.

    Attributes:
        drops_tokens: whether capacity is limited. If not, the output of a token does not depend on the other tokens of
            the batch, as generation requires.
        holds_share: whether ``wi``, ``wi_gate`` and ``wo`` are plain tensors of only the experts of this process. In
            training they are DTensors instead. See ``teachers.divided``.
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        num_experts: int,
        *,
        capacity_factor_train: float = 1.25,
        capacity_factor_eval: float = 2.0,
        jitter: float = 0.01,
        activation: str = "relu",
        dropout: float = 0.0,
        expert_dropout: float = 0.0,
    ):
        require_sizes(d_model=d_model, d_ff=d_ff, num_experts=num_experts)
        require_positive(capacity_factor_train=capacity_factor_train, capacity_factor_eval=capacity_factor_eval)
        require_fractions(jitter=jitter, dropout=dropout, expert_dropout=expert_dropout)
        known = (*ACT2FN, *(f"gated-{name}" for name in ACT2FN))
        require("activation", activation, "a name that transformers knows, such as relu", lambda name: name in known)
        super().__init__()
        self.num_experts = num_experts
        self.capacity_factor_train, self.capacity_factor_eval = capacity_factor_train, capacity_factor_eval
        self.jitter, self.dropout, self.expert_dropout = jitter, dropout, expert_dropout
        self.drops_tokens = True
        self.holds_share = False
        gated = activation.startswith("gated-")
        self.activation = ACT2FN["gelu_new" if activation == "gated-gelu" else activation.removeprefix("gated-")]
        self.router = nn.Linear(d_model, num_experts, bias=False)
        self.wi = nn.Parameter(torch.empty(num_experts, d_ff, d_model))
        self.wi_gate = nn.Parameter(torch.empty(num_experts, d_ff, d_model)) if gated else None
        self.wo = nn.Parameter(torch.empty(num_experts, d_model, d_ff))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise by a truncated normal with standard deviation sqrt(0.1 / fan_in) (section 2.4, table 3)."""
        for weight in (self.router.weight, self.wi, self.wi_gate, self.wo):
            if weight is not None:
                # Truncation at two standard deviations reduces the standard deviation to 0.8796 of its value.
                std = (0.1 / weight.shape[-1]) ** 0.5 / 0.87962566103423978
                nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)

    @property
    def divided(self) -> bool:
        """Whether the processes divide the experts, and must run each forward pass at the same time."""
        return self.holds_share or isinstance(self.wi, DTensor)

    def keep_share(self, process: int, processes: int) -> None:
        """Keep only the experts of ``process``, as plain tensors. It must be the rank of this process."""
        if processes == 1:
            return
        share = share_of_experts(self.num_experts, process, processes)
        for name, weight in self._experts():
            setattr(self, name, nn.Parameter(weight.detach()[share.start : share.stop].clone()))
        self.holds_share = True

    def divide(self, mesh: DeviceMesh) -> None:
        """Keep only the experts of this process, for training on all processes of ``mesh``."""
        if not self.holds_share:
            self.keep_share(mesh.get_rank(), mesh.size())
        for name, own in self._experts():
            setattr(self, name, divided_parameter(own, self.num_experts, mesh))
        self.holds_share = False

    def _experts(self) -> list[tuple[str, nn.Parameter]]:
        weights = [("wi", self.wi), ("wi_gate", self.wi_gate), ("wo", self.wo)]
        return [(name, weight) for name, weight in weights if weight is not None]

    def capacity(self, tokens: int | torch.Tensor) -> int | torch.Tensor:
        """The maximum number of tokens per expert in a batch of ``tokens`` unpadded tokens (equation 3).

        ``tokens`` may be an int64 scalar on the device, and so is the result then.
        """
        factor = self.capacity_factor_train if self.training else self.capacity_factor_eval
        if isinstance(tokens, torch.Tensor):
            return (tokens.double() / self.num_experts * factor).long().clamp(min=MINIMUM_CAPACITY)
        return max(MINIMUM_CAPACITY, int(tokens / self.num_experts * factor))

    def forward(
        self, hidden: torch.Tensor, padding_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, RoutingStatistics]:
        """Route the tokens and run their experts.

        Args:
            hidden: [batch, length, D], floating point.
            padding_mask: [batch, length], zero for padding; None if there is no padding.

        Returns:
            The output, with the shape and dtype of ``hidden``, without the residual connection; and the statistics.

        Raises:
            ValueError: an input has the wrong shape or dtype, or the dtype of the computation is float16, in which the
                public checkpoints overflow.
        """
        self._check(hidden, padding_mask)
        tokens_ND = hidden.flatten(0, -2)
        counted_N = None if padding_mask is None else padding_mask.flatten() != 0
        # With padding a tensor: for a number of Python, each layer would wait for the device.
        tokens: int | torch.Tensor = max(len(tokens_ND), 1) if counted_N is None else counted_N.sum().clamp(min=1)

        probs_NE = self._router_probabilities(tokens_ND)
        gates_NE = probs_NE if counted_N is None else probs_NE * counted_N[:, None]
        output_ND, load_E, dropped = self._run_chosen(tokens_ND, probs_NE, counted_N, tokens)
        output_ND = F.dropout(output_ND, self.dropout, self.training).to(hidden.dtype)
        return output_ND.view_as(hidden), self._statistics(gates_NE, load_E, dropped, tokens)

    def _check(self, hidden: torch.Tensor, padding_mask: torch.Tensor | None) -> None:
        width = self.router.in_features
        if hidden.ndim < 2 or hidden.shape[-1] != width or not hidden.is_floating_point():
            raise ValueError(
                f"hidden is {hidden.dtype} {list(hidden.shape)}; it must be floating point, [batch, length, {width}]"
            )
        if compute_dtype(hidden) == torch.float16:
            raise ValueError("a Switch layer cannot be computed in float16, which overflows; use bfloat16 or float32")
        if padding_mask is not None and padding_mask.shape != hidden.shape[:-1]:
            raise ValueError(
                f"padding_mask has shape {list(padding_mask.shape)}, hidden {list(hidden.shape)}; "
                "it must have one value for each token"
            )

    def _run_chosen(
        self,
        tokens_ND: torch.Tensor,
        probs_NE: torch.Tensor,
        counted_N: torch.Tensor | None,
        tokens: int | torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Run each token's expert; returns the gated output [N, D], the load [E] and the dropped fraction."""
        gate_N, expert_N = probs_NE.max(-1)
        if counted_N is not None:
            expert_N = expert_N.where(counted_N, self.num_experts)  # no expert
        routing, taken_N, capacity = sort_by_expert(expert_N, self.num_experts), expert_N < self.num_experts, None
        if self.drops_tokens:
            capacity = self.capacity(tokens)
            taken_N &= routing.position < capacity
        run = run_divided_experts if self.divided else run_experts
        wi, wi_gate, wo = own_experts(self.wi), own_experts(self.wi_gate), own_experts(self.wo)
        output_ND = run(tokens_ND, routing, capacity, self._inner, wi, wi_gate, wo)
        output_ND = (output_ND * gate_N[:, None].to(output_ND.dtype)).where(taken_N[:, None], 0)
        dropped = (routing.load.sum() - taken_N.sum()) / tokens
        return output_ND, routing.load.float() / tokens, dropped

    def _router_probabilities(self, tokens_ND: torch.Tensor) -> torch.Tensor:
        with torch.autocast(tokens_ND.device.type, enabled=False):
            x_ND = tokens_ND.float()
            if self.training and self.jitter:
                x_ND = x_ND * torch.empty_like(x_ND).uniform_(1 - self.jitter, 1 + self.jitter)
            return F.linear(x_ND, self.router.weight.float()).softmax(-1)

    def _inner(self, inner: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        """Activation, gating and expert dropout, element-wise."""
        inner = self.activation(inner) if gate is None else self.activation(gate) * inner
        return F.dropout(inner, self.expert_dropout, self.training)

    def _statistics(
        self, gates_NE: torch.Tensor, load_E: torch.Tensor, dropped: torch.Tensor, tokens: int | torch.Tensor
    ) -> RoutingStatistics:
        probs = gates_NE.detach()
        return RoutingStatistics(
            load_balancing_loss=self.num_experts * (load_E * (gates_NE.sum(0) / tokens)).sum(),
            load=load_E,
            dropped_fraction=dropped,
            entropy=-(probs * probs.clamp(min=1e-20).log()).sum() / tokens,
        )
