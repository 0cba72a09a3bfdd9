"""The Switch feed-forward layer (section 2 of the paper) and its routing statistics.

N tokens of the batch, D d_model, E experts.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN

from teachers.experts import run_experts, sort_by_expert

MINIMUM_CAPACITY = 4


class RoutingStatistics(NamedTuple):
    """What one forward pass of one layer did with its unpadded tokens."""

    load_balancing_loss: torch.Tensor  # scalar, before alpha; 1.0 when uniform (equation 4); has a gradient
    load: torch.Tensor  # [E], fraction of tokens whose argmax is the expert, before dropping (equation 5)
    dropped_fraction: torch.Tensor  # scalar, fraction of tokens beyond their expert's capacity
    entropy: torch.Tensor  # scalar, mean entropy of the router's probabilities, in nats


class SwitchLayer(nn.Module):
    """Each token goes to the one expert of highest router probability: ``y = p_i(x) * E_i(x)`` (equation 2).

    Tokens beyond an expert's capacity (equation 3), counted in token order over the whole batch, are dropped: their
    output is zero, so that the residual connection carries them on. Padding is never routed nor counted. The router
    is computed in float32 whatever the precision around it (section 2.4, "selective precision").

    Args:
        capacity_factor_train, capacity_factor_eval: capacity is max(4, int(N / E * factor)).
        jitter: the router's input, and only that, is multiplied by uniform noise in [1 - jitter, 1 + jitter] in
            training (appendix C, table 11).
        activation: a name that transformers knows, or ``gated-gelu`` (T5's gated GELU; adds ``wi_gate``).
        dropout: on the output, in training.
        expert_dropout: on the hidden activation inside the experts, in training (section 2.4, table 4).
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
        super().__init__()
        self.num_experts = num_experts
        self.capacity_factor_train, self.capacity_factor_eval = capacity_factor_train, capacity_factor_eval
        self.jitter, self.dropout, self.expert_dropout = jitter, dropout, expert_dropout
        gated = activation.startswith("gated-")
        self.activation = ACT2FN["gelu_new" if activation == "gated-gelu" else activation.removeprefix("gated-")]
        self.router = nn.Linear(d_model, num_experts, bias=False)
        self.wi = nn.Parameter(torch.empty(num_experts, d_ff, d_model))
        self.wi_gate = nn.Parameter(torch.empty(num_experts, d_ff, d_model)) if gated else None
        self.wo = nn.Parameter(torch.empty(num_experts, d_model, d_ff))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Truncated normal, standard deviation sqrt(0.1 / fan_in) (section 2.4, table 3)."""
        for weight in (self.router.weight, self.wi, self.wi_gate, self.wo):
            if weight is not None:
                # Cutting a normal at two standard deviations leaves 0.8796 of its width.
                std = (0.1 / weight.shape[-1]) ** 0.5 / 0.87962566103423978
                nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)

    def capacity(self, tokens: int) -> int:
        """Tokens that each expert takes at most, out of ``tokens`` unpadded ones (equation 3)."""
        factor = self.capacity_factor_train if self.training else self.capacity_factor_eval
        return max(MINIMUM_CAPACITY, int(tokens / self.num_experts * factor))

    def forward(
        self, hidden: torch.Tensor, padding_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, RoutingStatistics]:
        """Args: ``hidden`` [batch, length, D]; ``padding_mask`` [batch, length], nonzero for tokens that count.

        Returns ``hidden`` of the same shape and dtype, without the residual connection, and the statistics.
        """
        tokens_ND = hidden.flatten(0, -2)
        counted_N = None if padding_mask is None else padding_mask.flatten() != 0
        tokens = len(tokens_ND) if counted_N is None else int(counted_N.sum())
        capacity = self.capacity(tokens)

        probs_NE = self._router_probabilities(tokens_ND)
        gate_N, expert_N = probs_NE.max(-1)
        if counted_N is not None:
            expert_N = expert_N.where(counted_N, self.num_experts)  # an expert that does not exist
        routing = sort_by_expert(expert_N, self.num_experts)
        taken_N = (routing.position < capacity) & (expert_N < self.num_experts)
        output_ND = run_experts(tokens_ND, routing, capacity, self._inner, self.wi, self.wi_gate, self.wo)
        mixed_ND = (output_ND * gate_N[:, None].to(output_ND.dtype)).where(taken_N[:, None], 0)
        mixed_ND = F.dropout(mixed_ND, self.dropout, self.training).to(hidden.dtype)
        statistics = self._statistics(probs_NE, counted_N, routing.load, taken_N, max(tokens, 1))
        return mixed_ND.view_as(hidden), statistics

    def _router_probabilities(self, tokens_ND: torch.Tensor) -> torch.Tensor:
        with torch.autocast(tokens_ND.device.type, enabled=False):
            x_ND = tokens_ND.float()
            if self.training and self.jitter:
                x_ND = x_ND * torch.empty_like(x_ND).uniform_(1 - self.jitter, 1 + self.jitter)
            return F.linear(x_ND, self.router.weight.float()).softmax(-1)

    def _inner(self, inner: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        """Activation, gating and expert dropout, element by element."""
        inner = self.activation(inner) if gate is None else self.activation(gate) * inner
        return F.dropout(inner, self.expert_dropout, self.training)

    def _statistics(
        self,
        probs_NE: torch.Tensor,
        counted_N: torch.Tensor | None,
        load_E: torch.Tensor,
        taken_N: torch.Tensor,
        tokens: int,
    ) -> RoutingStatistics:
        if counted_N is not None:
            probs_NE = probs_NE * counted_N[:, None]
        load = load_E.float() / tokens
        probs = probs_NE.detach()
        return RoutingStatistics(
            load_balancing_loss=self.num_experts * (load * (probs_NE.sum(0) / tokens)).sum(),
            load=load,
            dropped_fraction=(load_E.sum() - taken_N.sum()) / tokens,
            entropy=-(probs * probs.clamp(min=1e-20).log()).sum() / tokens,
        )
