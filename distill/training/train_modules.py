"""A model and its loss as one module, so that the training loop is independent of both.

``forward(input_ids [B, S], labels [B, T], ...)`` takes the fields of a batch. It returns the loss and the metrics to
log, all summed over target tokens; the loop divides them by the number of target tokens. The loop sets the attribute
``step`` (counted from 0) before each optimizer step, for losses with a schedule.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from distill.loss import SoftLabels, sum_of_losses
from distill.models.t5_forward import hidden_states

LossAndMetrics = tuple[torch.Tensor, dict[str, torch.Tensor]]


class TrainModule(nn.Module):
    """Base class: ``model``, and a loss that subclasses compute in ``forward``."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        self.step = 0


class HardLabels(TrainModule):
    """Cross-entropy with hard labels: for the baseline, and for a student without soft labels."""

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> LossAndMetrics:
        hidden, head = hidden_states(self.model, input_ids, labels)
        loss = sum_of_losses(hidden, head, labels.flatten(), None, hard_fraction=1.0).loss
        return loss, {"loss": loss.detach()}


class _MixedLabels(TrainModule):
    """The mixed loss of section 4.2, independent of the source of the soft labels.

    Before step ``soft_start`` the loss uses hard labels only, as in the reference code. ``balance`` is "fixed", or
    "by-token" for the weights of ``by_token`` in ``distill.loss.mixed_cross_entropy``.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        hard_fraction: float,
        temperature: float,
        soft_start: int = 0,
        balance: str = "fixed",
    ):
        super().__init__(model)
        self.hard_fraction, self.temperature, self.soft_start = hard_fraction, temperature, soft_start
        self.by_token = balance == "by-token"

    @property
    def reads_soft_labels(self) -> bool:
        """Whether the loss uses soft labels at this step."""
        return self.hard_fraction < 1 and self.step >= self.soft_start

    def mixed_loss(
        self, input_ids: torch.Tensor, labels: torch.Tensor, soft_labels: SoftLabels | None
    ) -> LossAndMetrics:
        """Loss and metrics. ``soft_labels`` may be None at steps that do not read them."""
        hidden, head = hidden_states(self.model, input_ids, labels)
        mixed = self.reads_soft_labels
        sums = sum_of_losses(
            hidden,
            head,
            labels.flatten(),
            soft_labels if mixed else None,
            hard_fraction=self.hard_fraction if mixed else 1.0,
            by_token=self.by_token,
            temperature=self.temperature,
        )
        metrics = {"loss": sums.loss.detach(), "hard_loss": sums.hard}
        if mixed:
            metrics |= {"soft_loss": sums.soft, "kl": sums.soft - sums.entropy}
        return sums.loss, metrics


class HardAndCachedLabels(_MixedLabels):
    """The mixed loss, with soft labels from the batch."""

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor, soft_labels: SoftLabels) -> LossAndMetrics:
        return self.mixed_loss(input_ids, labels, soft_labels)


class HardAndSoftLabels(_MixedLabels):
    """The mixed loss, with soft labels that a frozen teacher (``distill.models.build.freeze``) computes at each step.

    At steps that do not read soft labels, the teacher does not run.
    """

    def __init__(self, model: PreTrainedModel, teacher: PreTrainedModel, **mix: Any):
        super().__init__(model, **mix)
        self._teacher = [teacher.eval().requires_grad_(False)]  # in a list, so that it is not a submodule

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> LossAndMetrics:
        soft_labels = None
        if self.reads_soft_labels:
            with torch.no_grad():
                soft_labels = hidden_states(self._teacher[0], input_ids, labels)
        return self.mixed_loss(input_ids, labels, soft_labels)
