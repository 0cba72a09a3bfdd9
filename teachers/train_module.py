"""The training loss of a Switch teacher: hard labels plus the load-balancing loss of every Switch layer."""

import torch
from transformers import SwitchTransformersForConditionalGeneration

from distill.data.examples import IGNORE_INDEX
from distill.loss import sum_of_losses
from distill.models.t5_forward import hidden_states
from distill.training.train_modules import LossAndMetrics, TrainModule
from teachers.build import switch_layers


class HardLabelsAndLoadBalance(TrainModule):
    """Cross-entropy plus ``load_balancing_weight`` times the load-balancing loss of each layer (section 2.2).

    The load-balancing losses of all layers are added, so that balanced layers do not hide an unbalanced one.
    """

    def __init__(self, model: SwitchTransformersForConditionalGeneration, *, load_balancing_weight: float):
        super().__init__(model)
        self.load_balancing_weight = load_balancing_weight

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> LossAndMetrics:
        """Loss and metrics, summed over target tokens; see ``distill.training.train_modules``."""
        hidden, head = hidden_states(self.model, input_ids, labels)
        loss = sum_of_losses(hidden, head, labels.flatten(), None, hard_fraction=1.0).loss
        tokens = (labels != IGNORE_INDEX).sum()
        layers = [layer.statistics for _, layer in switch_layers(self.model) if layer.statistics is not None]
        balance = torch.stack([layer.load_balancing_loss for layer in layers])
        total = loss + self.load_balancing_weight * balance.sum() * tokens
        return total, {
            "loss": loss.detach(),
            "load_balancing_loss": balance.detach().mean() * tokens,
            "dropped_fraction": torch.stack([layer.dropped_fraction for layer in layers]).mean() * tokens,
            "router_entropy": torch.stack([layer.entropy for layer in layers]).mean() * tokens,
        }
