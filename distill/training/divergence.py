"""How a training run goes wrong in its numbers, and how that is noticed."""

import math
from collections import deque
from collections.abc import Iterable
from statistics import median

from distill.errors import ExpectedError

EXPLOSION_FACTOR = 1000  # times the median of the last gradients' norms
MAX_NORMS = 100  # norms
MIN_NORMS = 10  # norms that a median is taken of
MAX_RESTARTS = 3  # of a run; each halves the learning rate


class TrainingDiverged(ExpectedError, RuntimeError):
    """Loss, gradient, quality or routing is not what training can go on from. The message says where and what to do."""


def check_figures(values: dict[str, float]) -> dict[str, float]:
    """``values`` as they are.

    Raises:
        TrainingDiverged: one is not finite.
    """
    if unknown := [name for name, value in values.items() if not math.isfinite(value)]:
        raise TrainingDiverged(f"{unknown[0]} is {values[unknown[0]]}")
    return values


def check_losses(losses: list[float], title: str) -> None:
    """Of the test examples, in nats per target token, which the stage ``title`` has measured.

    Raises:
        TrainingDiverged: one is not finite, so that the model has no quality.
    """
    if wrong := sum(not math.isfinite(loss) for loss in losses):
        raise TrainingDiverged(
            f"{title} cannot be measured: {wrong} of {len(losses)} test examples have a loss that is no number; "
            "train it with a lower learning_rate, or load another checkpoint"
        )


class NormWatch:
    """The norms of the last gradients, and whether the next one is out of all proportion."""

    def __init__(self, norms: Iterable[float], clip: float):
        """``clip``: the largest norm that is not clipped; none up to it is an explosion."""
        self.norms, self.clip = deque(norms, maxlen=MAX_NORMS), clip

    def check(self, loss: float, norm: float) -> None:
        """Of one step, before its update: ``loss`` in nats per target token and the norm before clipping.

        Raises:
            TrainingDiverged: one of them is not finite, or the gradient has exploded.
        """
        if not math.isfinite(loss + norm):
            raise TrainingDiverged(f"loss {loss:.3g}, gradient norm {norm:.3g}")
        usual = median(self.norms) if len(self.norms) >= MIN_NORMS else 0
        if usual and norm > max(EXPLOSION_FACTOR * usual, self.clip):
            raise TrainingDiverged(f"gradient norm {norm:.3g}, where {usual:.3g} was usual")
        self.norms.append(norm)
