"""The command line: ``switch-distill``, or ``python -m pipelines.cli``."""

from pipelines.cli.main import main

__all__ = ["main"]
