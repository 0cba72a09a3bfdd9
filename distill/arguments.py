"""Checks of the arguments of public functions. Each check raises an error of one sentence before any computation."""

import math
from collections.abc import Callable
from numbers import Integral
from typing import Any


def require(name: str, value: Any, needed: str, valid: Callable[[Any], bool]) -> None:
    """Raise ValueError unless ``valid`` returns true for an argument.

    Args:
        name: of the argument.
        value: of the argument.
        needed: description of a valid value, such as "a number above 0".
        valid: takes the value; a TypeError in it means that the value is not valid.
    """
    try:
        good = bool(valid(value))
    except TypeError:  # the value has a type that cannot be compared
        good = False
    if not good:
        raise ValueError(f"{name} is {value!r:.60}; it must be {needed}")


def require_positive(**arguments: Any) -> None:
    """Raise ValueError unless every argument is a finite number above 0."""
    for name, value in arguments.items():
        require(name, value, "a number above 0", lambda number: 0 < number < math.inf)


def require_sizes(**arguments: Any) -> None:
    """Raise ValueError unless every argument is a whole number of at least 1."""
    for name, value in arguments.items():
        require(name, value, "a whole number of at least 1", lambda size: isinstance(size, Integral) and int(size) >= 1)


def require_fractions(**arguments: Any) -> None:
    """Raise ValueError unless every argument is in [0, 1)."""
    for name, value in arguments.items():
        require(name, value, "a number from 0 to below 1", lambda number: 0 <= number < 1)
