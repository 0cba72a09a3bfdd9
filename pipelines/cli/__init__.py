"""The command line: ``switch-distill``, or ``python -m pipelines.cli``.

app         the commands that read models, stores and configs; exit codes and messages of errors
stages      the commands that run stages: run, and one for each kind of stage
serving     the commands for finished students: export, serve, and benchmark
options     options that several commands share
inspection  the output of inspect
results     the final output of the commands that run stages
signals     SIGTERM as an exception, so that stages end their MLflow runs and release their locks
completion  values that the shell offers when the user presses Tab
"""

from pipelines.cli.app import main

__all__ = ["main"]
