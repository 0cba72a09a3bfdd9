"""A model and its loss as one module, so that the training loop need not know which of them it trains.

``forward(input_ids [B, S], labels [B, T], ...)``, with all that a batch holds, returns the loss summed over the target
tokens, and what to log, each value summed over the target tokens too: divided by their count, both become means.
"""

import torch
from torch import nn
from transformers import PreTrainedModel

from distill.loss import SoftLabels, sum_of_losses
from distill.t5 import hidden_states

LossAndMetrics = tuple[torch.Tensor, dict[str, torch.Tensor]]


class HardLabels(nn.Module):
    """Cross-entropy with the text: the baseline, and a student without soft labels."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> LossAndMetrics:
        hidden, head = hidden_states(self.model, input_ids, labels)
        loss = sum_of_losses(hidden, head, labels.flatten(), None, hard_fraction=1.0).loss
        return loss, {"loss": loss.detach()}


class HardAndCachedLabels(nn.Module):
    """The mixed loss of section 4.2, with soft labels that come with the batch."""

    def __init__(self, model: PreTrainedModel, *, hard_fraction: float, temperature: float):
        super().__init__()
        self.model = model
        self.hard_fraction, self.temperature = hard_fraction, temperature

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor, soft_labels: SoftLabels) -> LossAndMetrics:
        hidden, head = hidden_states(self.model, input_ids, labels)
        sums = sum_of_losses(
            hidden,
            head,
            labels.flatten(),
            soft_labels,
            hard_fraction=self.hard_fraction,
            temperature=self.temperature,
        )
        return sums.loss, {
            "loss": sums.loss.detach(),
            "hard_loss": sums.hard,
            "soft_loss": sums.soft,
            "kl": sums.soft - sums.entropy,
        }


class HardAndSoftLabels(HardAndCachedLabels):
    """The same loss, with the soft labels that a teacher (``distill.seq2seq.freeze``) gives at each step."""

    def __init__(self, model: PreTrainedModel, teacher: PreTrainedModel, *, hard_fraction: float, temperature: float):
        super().__init__(model, hard_fraction=hard_fraction, temperature=temperature)
        self._teacher = [teacher.eval().requires_grad_(False)]  # in a list: not a part of what is trained

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> LossAndMetrics:
        with torch.no_grad():
            soft_labels = hidden_states(self._teacher[0], input_ids, labels)
        return super().forward(input_ids, labels, soft_labels)
