"""Benchmarks choose a precision of their own, which accelerate sets once per process."""

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True)
def own_precision():
    """Reset the precision before and after each test."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
