"""The command line: ``switch-distill``, or ``python -m pipelines.cli``."""

from pipelines.cli.app import main

__all__ = ["main"]
