"""The report.

bootstrap  gains, fractions kept and their intervals
verdict    sentences: why a fraction is undefined, which models are worse than a baseline
table      the table of a report: in Markdown, for a terminal, and as CSV
plot       plots
paper      figures of the paper, for comparison
registry   metrics and tags of each student in MLflow, and the champion alias
"""

from typing import Any

__all__ = ["fraction_kept"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # imported on use, because scipy is slow to import and few commands need it
        from pipelines.reporting import bootstrap

        return getattr(bootstrap, name)
    raise AttributeError(f"module 'pipelines.reporting' has no attribute {name!r}")
