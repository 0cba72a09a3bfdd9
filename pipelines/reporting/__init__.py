"""What a report says: intervals, tables and pictures. ``fraction_kept`` is the public name of its figure."""

from pipelines.reporting.bootstrap import fraction_kept

__all__ = ["fraction_kept"]
