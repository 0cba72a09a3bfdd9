"""The comparison of ratios as a saved view of the MLflow UI, and the link that opens it.

The view is an experiment tag in the UI's internal format. Nothing else depends on it: without the view, the link shows
all runs.
"""

import base64
import json
import os
import sys
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from distill.errors import UserError
from distill.io.files import read_json
from pipelines.tracking.store import Store
from pipelines.tracking.store_uri import artifact_location, redacted

_TAG = "mlflow.sharedViewState."
_COLUMNS = ("fraction_kept", "fraction_kept_long", "compression", "experts", "quality", "gain", "parameters")


def comparison_link(experiment_id: str, tags: dict[str, str], comparison: str | None) -> str:
    """The part of the UI's URL after host and port.

    Args:
        tags: the tags of the experiment, which contain its views.
        comparison: the name of the view to open; if there is no such view, the newest one is opened.
    """
    views = {}
    for key, value in tags.items():
        if key.startswith(_TAG):
            with suppress(ValueError, KeyError, TypeError):  # users may have saved views in another form
                views[key.removeprefix(_TAG)] = int(json.loads(value)["createdAt"])
    if comparison not in views:
        comparison = max(views, key=views.__getitem__, default=None)
    view = f"&viewStateShareKey={comparison}" if comparison else ""
    # Without the workflow type, the UI opens in its GenAI mode.
    return f"/#/experiments/{experiment_id}/runs?workflowType=machine_learning&compareRunsMode=CHART{view}"


def publish_view(store: Store, name: str, comparison: str, coordinates: list[str], metrics: list[str]) -> None:
    """Save a view of the students of one report: fraction kept against compression and experts, and the curves.

    Args:
        name: of the config.
        comparison: the name of the view, 12 digits of the report's fingerprint.
        coordinates: the params in which the students differ. They are the axes of a parallel-coordinates chart, whose
            last axis is the fraction that each student keeps.
        metrics: of the task; each has two columns and two charts: its value, and the fraction of its gain that is kept.
    """
    state = _state(comparison, coordinates, metrics)
    packed = "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()
    now = int(time.time() * 1000)
    value = json.dumps({"name": f"{name}: compression ratios", "createdAt": now, "updatedAt": now, "state": packed})
    store.client.set_experiment_tag(store.experiment, f"{_TAG}{comparison}", value)


def serve_ui(store: Store, workdir: Path, host: str, port: int, console: Console) -> None:
    """Print the link to the comparison. If the store is embedded, replace this process with an MLflow server.

    Raises:
        UserError: the report.json of the work directory is damaged.
        StoreError: the store fails.
    """
    server = f"http://{host}:{port}" if store.uri.startswith("sqlite") else redacted(store.uri).rstrip("/")
    newest = _comparison(workdir / "report.json")
    for experiment in store.client.search_experiments(order_by=["last_update_time DESC"]):
        if experiment.name != "Default":
            link = f"{server}{comparison_link(experiment.experiment_id, experiment.tags, newest)}"
            console.print(f"{experiment.name}: {link}", soft_wrap=True, highlight=False, markup=False)
    if not store.uri.startswith("sqlite"):
        return  # a tracking server has a UI of its own
    # One worker and no job queue take 0.5 GB of memory instead of 2.5 GB.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # mlflow finds uvicorn there
    # Otherwise mlflow and uvicorn import the user's files in the current directory, for example an mlflow.py.
    os.environ.update(PYTHONSAFEPATH="1", UVICORN_APP_DIR=str(store.workdir))
    artifacts = artifact_location(store.workdir)
    arguments = ["--backend-store-uri", store.uri, "--artifacts-destination", artifacts, "--workers", "1"]
    command = [sys.executable, "-m", "mlflow", "server", *arguments, "--host", host, "--port", str(port)]
    # The command consists of this Python and fixed or checked arguments.
    os.execv(sys.executable, command)  # nosec B606


def _comparison(report: Path) -> str | None:
    """The name of the view of a report.json; None if there is no such file."""
    if not report.exists():
        return None
    hint = "delete it, or write it again with: switch-distill report CONFIG"
    values = read_json(report, hint)
    fingerprint = values.get("fingerprint") if isinstance(values, dict) else None
    if not isinstance(fingerprint, str):
        raise UserError(f"{report} is damaged: it has no fingerprint; {hint}")
    return fingerprint[:12]


def _state(comparison: str, coordinates: list[str], metrics: list[str]) -> dict[str, Any]:
    section, of_metrics = "fraction-kept", [one for name in metrics for one in (name, f"{name}_fraction_kept")]
    charts: list[dict[str, Any]] = [
        {"type": "BAR", "metricKey": "fraction_kept"},
        {"type": "SCATTER", "xaxis": _metric("compression"), "yaxis": _metric("fraction_kept")},
        {"type": "SCATTER", "xaxis": _metric("experts"), "yaxis": _metric("fraction_kept")},
        {"type": "BAR", "metricKey": "fraction_kept_long"},
        *({"type": "BAR", "metricKey": name} for name in of_metrics),
        *([_parallel(coordinates, "fraction_kept_of_seed")] if coordinates else []),
        _line("eval/quality"),
        _line("train/loss"),
    ]
    columns = [f"metrics.`{name}`" for name in (*_COLUMNS, *of_metrics)]
    cards = [
        {
            "uuid": f"{section}-{number}",
            "runsCountToCompare": 100,
            "metricSectionId": section,
            "deleted": False,
            "isGenerated": False,
            **chart,
        }
        for number, chart in enumerate(charts)
    ]
    return {
        "searchFilter": f"tags.`comparison.{comparison}` = '1' AND tags.stage = 'distill'",
        "orderByKey": "metrics.`experts`",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [*columns, "attributes.`Models`", "attributes.`Dataset`"],
        "columnOrder": [],
        "columnWidths": {},
        "runsHiddenMode": "SHOWALL",
        "compareRunCharts": cards,
        "compareRunSections": [
            {
                "uuid": section,
                "name": "Fraction of the teacher's gain kept",
                "display": True,
                "isReordered": False,
                "deleted": False,
                "isGenerated": False,
            }
        ],
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": False,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def _metric(name: str) -> dict[str, str]:
    return {"key": name, "type": "METRIC"}


def _parallel(params: list[str], metric: str) -> dict[str, Any]:
    return {"type": "PARALLEL", "selectedParams": params, "selectedMetrics": [metric], "showAllRuns": False}


def _line(metric: str) -> dict[str, Any]:
    return {
        "type": "LINE",
        "metricKey": metric,
        "lineSmoothness": 0,
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }
