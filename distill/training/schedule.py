"""The learning rate of each optimizer step. Does not import torch."""

import math

from distill.config import TrainingConfig


def learning_rate(config: TrainingConfig, step: int, steps: int) -> float:
    """The learning rate of optimizer step ``step`` (counted from 0) in a run of ``steps`` steps.

    A linear warm-up comes first. ``inverse_sqrt`` continues with lr * sqrt(warmup / step), as in T5's training, and
    ``constant`` with lr (arXiv:2405.18392); both fall linearly to zero in the last part of the run (``cooldown``).
    ``cosine`` continues with half a period to zero.
    """
    warmup = config.warmup_steps
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "cosine":
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
    trunk = trunk_steps(config, steps)
    rate = config.learning_rate
    if config.schedule == "inverse_sqrt":
        rate *= math.sqrt(max(warmup, 1) / max(min(step, trunk), warmup, 1))
    return rate * (steps - step) / (steps - trunk + 1) if step >= trunk and steps > trunk else rate


def trunk_steps(config: TrainingConfig, steps: int) -> int:
    """The number of first steps whose learning rate does not depend on ``steps``. Longer runs share these steps."""
    if config.schedule == "cosine":
        return min(config.warmup_steps, steps)
    return max(steps - round(config.cooldown * steps), min(config.warmup_steps, steps))
