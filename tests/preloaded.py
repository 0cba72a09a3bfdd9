"""Imports the libraries of stages, exports and MLflow's SQLite store, for the processes that ``tests.forked`` forks."""

import gc
import importlib
import os

os.environ.update(MLFLOW_TRACKING_URI="", OMP_NUM_THREADS="1")

from pipelines.cli import app

app._quiet_libraries()
for name in (
    "matplotlib.backends.backend_agg",
    "mlflow.store.tracking.sqlalchemy_store",
    "pipelines.cli.results",
    "pipelines.stages.baseline",
    "pipelines.stages.distill",
    "pipelines.stages.init",
    "pipelines.stages.label",
    "pipelines.stages.report",
    "pipelines.stages.teacher",
    "students.export.parity",
    "transformers.models.switch_transformers.modeling_switch_transformers",
    "transformers.models.t5.modeling_t5",
):
    importlib.import_module(name)

gc.freeze()  # training collects garbage, and would search all that these imports have made
