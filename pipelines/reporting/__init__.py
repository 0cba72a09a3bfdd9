"""The report.

bootstrap      gains, fractions kept and their intervals
sums           losses and metrics as sums over documents, from which intervals are computed
resampling     resamples of documents and seeds
comparison     a figure of all models, and the values of report.json that compare them
task_report    the values of report.json that only a task has: metrics, groups, answers
verdict        names and sentences: why a fraction is undefined, which models are worse than a baseline
table          the table of a report: in Markdown, for a terminal, and as CSV
sections       sections of report.md below the table: gains, differences between students, training
task_table     the sections of report.md that only a task has, and groups.csv
cells          cells of these tables
plot           plots
step_curve     the fraction kept against the steps of the student
levelling      whether the baseline has levelled off
concentration  whether a few documents decide a comparison
report_files   the files that a report leaves
group_plot     the plot of a task's groups
size_plot      the plot of students of several sizes
paper          figures of the paper, for comparison
registry       metrics and tags of each student in MLflow, and the champion alias
"""

from typing import Any

__all__ = ["fraction_kept"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # imported on use, because scipy is slow to import and few commands need it
        from pipelines.reporting import bootstrap

        return getattr(bootstrap, name)
    raise AttributeError(f"module 'pipelines.reporting' has no attribute {name!r}")
