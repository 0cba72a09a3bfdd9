"""Arguments of public functions that cannot be meant, refused in one sentence before anything is computed with them."""

import math
from collections.abc import Callable
from numbers import Integral
from typing import Any


def require(name: str, value: Any, needed: str, valid: Callable[[Any], bool]) -> None:
    """Raise ValueError where ``valid`` does not hold for an argument.

    Args:
        needed: what it must be, such as "a number above 0".
    """
    try:
        good = bool(valid(value))
    except TypeError:  # of another type, which cannot be compared
        good = False
    if not good:
        raise ValueError(f"{name} is {value!r:.60}; it must be {needed}")


def require_positive(**arguments: Any) -> None:
    """Raise ValueError where one of these is no finite number above 0."""
    for name, value in arguments.items():
        require(name, value, "a number above 0", lambda number: 0 < number < math.inf)


def require_sizes(**arguments: Any) -> None:
    """Raise ValueError where one of these is no whole number of at least 1."""
    for name, value in arguments.items():
        require(name, value, "a whole number of at least 1", lambda size: isinstance(size, Integral) and int(size) >= 1)


def require_fractions(**arguments: Any) -> None:
    """Raise ValueError where one of these is no number from 0 to below 1."""
    for name, value in arguments.items():
        require(name, value, "a number from 0 to below 1", lambda number: 0 <= number < 1)
