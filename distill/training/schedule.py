"""The learning rate of each optimizer step. Needs no torch."""

import math

from distill.config import TrainingConfig


def learning_rate(config: TrainingConfig, step: int, steps: int) -> float:
    """The rate of optimizer step ``step`` (from 0) in a run of ``steps``.

    Linear warm-up, then ``inverse_sqrt``: lr * sqrt(warmup / step), as T5 was trained, with a last part
    (``cooldown``) that falls linearly to zero; or ``cosine``: half a period down to zero.
    """
    warmup = config.warmup_steps
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "cosine":
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
    trunk = trunk_steps(config, steps)
    rate = config.learning_rate * math.sqrt(max(warmup, 1) / max(min(step, trunk), warmup, 1))
    return rate * (steps - step) / (steps - trunk + 1) if step >= trunk and steps > trunk else rate


def trunk_steps(config: TrainingConfig, steps: int) -> int:
    """How many of the first steps do not depend on ``steps``: runs of any longer length share them."""
    if config.schedule == "cosine":
        return min(config.warmup_steps, steps)
    return max(steps - round(config.cooldown * steps), min(config.warmup_steps, steps))
