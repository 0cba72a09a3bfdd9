"""Detection of divergence: values that are not finite, and gradients that explode."""

import math
from collections import deque
from collections.abc import Iterable
from statistics import median

from distill.errors import ExpectedError

EXPLOSION_FACTOR = 1000  # times the median of the recent gradient norms
MAX_NORMS = 100  # recent norms that are kept
MIN_NORMS = 10  # norms that the median needs
MAX_RESTARTS = 3  # per run; each halves the learning rate


class TrainingDiverged(ExpectedError, RuntimeError):
    """Training cannot continue from this loss, gradient, quality or routing. The message names the cause and remedy."""


def check_figures(values: dict[str, float]) -> dict[str, float]:
    """Return ``values`` unchanged if all are finite.

    Raises:
        TrainingDiverged: a value is not finite.
    """
    if unknown := [name for name, value in values.items() if not math.isfinite(value)]:
        raise TrainingDiverged(f"{unknown[0]} is {values[unknown[0]]}")
    return values


def check_losses(losses: list[float], title: str) -> None:
    """Check the losses of the evaluated examples.

    Args:
        losses: [examples], nats per target token.
        title: of the stage that measured them, for the message.

    Raises:
        TrainingDiverged: a loss is not finite, so the model has no quality.
    """
    if wrong := sum(not math.isfinite(loss) for loss in losses):
        raise TrainingDiverged(
            f"{title} cannot be measured: {wrong} of {len(losses)} evaluated examples have a loss that is not finite; "
            "train it with a lower learning_rate, or load another checkpoint"
        )


class NormWatch:
    """Recent gradient norms, and a check of each new norm against their median."""

    def __init__(self, norms: Iterable[float], clip: float):
        """``norms``: recent norms, oldest first. ``clip``: norms up to it never count as explosions."""
        self.norms, self.clip = deque(norms, maxlen=MAX_NORMS), clip

    def check(self, loss: float, norm: float) -> None:
        """Check a step before its update: ``loss`` in nats per target token, ``norm`` before clipping.

        Raises:
            TrainingDiverged: one of them is not finite, or the gradient has exploded.
        """
        if not math.isfinite(loss + norm):
            raise TrainingDiverged(f"loss {loss:.3g}, gradient norm {norm:.3g}")
        usual = median(self.norms) if len(self.norms) >= MIN_NORMS else 0
        if usual and norm > max(EXPLOSION_FACTOR * usual, self.clip):
            raise TrainingDiverged(f"gradient norm {norm:.3g} (recent median {usual:.3g})")
        self.norms.append(norm)
