"""The report.

bootstrap  gains, fractions kept and their intervals
verdict    why a fraction is undefined, in words
table      the table of a report: in Markdown, for a terminal, and as CSV
plot       pictures
paper      the paper's figures beside ours
registry   figures and tags of each student in MLflow, and which is the champion
"""

from typing import Any

__all__ = ["fraction_kept"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # scipy is slow to import, and few commands need it
        from pipelines.reporting import bootstrap

        return getattr(bootstrap, name)
    raise AttributeError(f"module 'pipelines.reporting' has no attribute {name!r}")
