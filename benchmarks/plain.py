"""Distillation as a user would write it with transformers and accelerate, for comparison with this project.

It uses full logits, ``F.cross_entropy``, a soft cross-entropy and torch's AdamW, and no code of this project.
"""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from transformers import PreTrainedModel


def mixed_loss(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, labels: torch.Tensor, hard_fraction: float = 0.75
) -> torch.Tensor:
    """The mean over target tokens of ``hard_fraction`` * hard + (1 - ``hard_fraction``) * soft cross-entropy.

    Args:
        student_logits: [N, V].
        teacher_logits: [N, V].
        labels: [N]; positions with label -100 do not count.
        hard_fraction: weight of the hard labels, in [0, 1].

    Returns:
        A scalar in float32, in nats.
    """
    mask = labels != -100
    hard = F.cross_entropy(student_logits.float(), labels, ignore_index=-100)
    teacher_probs = F.softmax(teacher_logits.float(), dim=-1)
    soft = -(teacher_probs * F.log_softmax(student_logits.float(), dim=-1)).sum(-1)[mask].mean()
    return hard_fraction * hard + (1 - hard_fraction) * soft


class PlainDistillation:
    """A teacher, a student and an optimizer, with the step over one batch."""

    def __init__(self, teacher: PreTrainedModel, student: PreTrainedModel, *, mixed_precision: str):
        self.accelerator = Accelerator(mixed_precision=mixed_precision)
        self.teacher = self.accelerator.prepare(teacher).eval()
        optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
        self.student, self.optimizer = self.accelerator.prepare(student, optimizer)
        self.student.train()

    def step(self, input_ids: torch.Tensor, labels: torch.Tensor) -> float:
        """Take one optimizer step on ``input_ids`` [B, S] and ``labels`` [B, T], and return the loss."""
        with torch.no_grad(), self.accelerator.autocast():
            teacher_logits = self.teacher(input_ids=input_ids, labels=labels).logits
        with self.accelerator.autocast():
            student_logits = self.student(input_ids=input_ids, labels=labels).logits
            loss = mixed_loss(student_logits.flatten(0, 1), teacher_logits.flatten(0, 1), labels.flatten())
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()
