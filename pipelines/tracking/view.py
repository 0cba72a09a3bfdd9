"""The comparison of ratios as a saved view of the MLflow UI, and the link that opens it.

The view is one experiment tag in the UI's own format. Nothing depends on it: without it the link shows all runs.
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

from pipelines.tracking.store import Store
from pipelines.tracking.store_uri import artifact_location, redacted

_TAG = "mlflow.sharedViewState."
_COLUMNS = ("fraction_kept", "fraction_kept_long", "compression", "experts", "quality", "gain", "parameters")


def comparison_link(experiment_id: str, tags: dict[str, str], comparison: str | None) -> str:
    """The part of the UI's address after host and port, with the view of ``comparison`` or else the newest one.

    ``tags`` are the experiment's. Without the workflow type the UI opens in its GenAI mode.
    """
    views = {}
    for key, value in tags.items():
        if key.startswith(_TAG):
            with suppress(ValueError, KeyError, TypeError):  # those that people share by hand may have another form
                views[key.removeprefix(_TAG)] = int(json.loads(value)["createdAt"])
    if comparison not in views:
        comparison = max(views, key=views.__getitem__, default=None)
    view = f"&viewStateShareKey={comparison}" if comparison else ""
    return f"/#/experiments/{experiment_id}/runs?workflowType=machine_learning&compareRunsMode=CHART{view}"


def publish_view(store: Store, name: str, comparison: str, coordinates: list[str]) -> None:
    """Save the view of one report's students: fraction kept against compression and experts, and the curves.

    ``coordinates`` are the params in which they differ: parallel ones, with what each keeps as the last.
    """
    state = _state(comparison, coordinates)
    packed = "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()
    now = int(time.time() * 1000)
    value = json.dumps({"name": f"{name}: compression ratios", "createdAt": now, "updatedAt": now, "state": packed})
    store.client.set_experiment_tag(store.experiment, f"{_TAG}{comparison}", value)


def serve(store: Store, workdir: Path, host: str, port: int, console: Console) -> None:
    """Say where the comparison is, and become the MLflow server of an embedded store."""
    server = f"http://{host}:{port}" if store.uri.startswith("sqlite") else redacted(store.uri).rstrip("/")
    report = workdir / "report.json"
    newest = json.loads(report.read_text())["fingerprint"][:12] if report.exists() else None
    for experiment in store.client.search_experiments(order_by=["last_update_time DESC"]):
        if experiment.name != "Default":
            link = f"{server}{comparison_link(experiment.experiment_id, experiment.tags, newest)}"
            console.print(f"{experiment.name}: {link}", soft_wrap=True, highlight=False, markup=False)
    if not store.uri.startswith("sqlite"):
        return  # a tracking server shows its own UI
    # One worker and no job queue: half a gigabyte instead of two and a half.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # mlflow runs uvicorn from it
    artifacts = artifact_location(store.workdir)
    arguments = ["--backend-store-uri", store.uri, "--artifacts-destination", artifacts, "--workers", "1"]
    command = [sys.executable, "-m", "mlflow", "server", *arguments, "--host", host, "--port", str(port)]
    # This Python, with arguments of ours and of the command line alone.
    os.execv(sys.executable, command)  # nosec B606


def _state(comparison: str, coordinates: list[str]) -> dict[str, Any]:
    section = "fraction-kept"
    charts = [
        {"type": "BAR", "metricKey": "fraction_kept"},
        {"type": "SCATTER", "xaxis": _metric("compression"), "yaxis": _metric("fraction_kept")},
        {"type": "SCATTER", "xaxis": _metric("experts"), "yaxis": _metric("fraction_kept")},
        {"type": "BAR", "metricKey": "fraction_kept_long"},
        *([_parallel(coordinates, "fraction_kept_of_seed")] if coordinates else []),
        _line("eval/quality"),
        _line("train/loss"),
    ]
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
        "selectedColumns": [*(f"metrics.`{name}`" for name in _COLUMNS), "attributes.`Models`", "attributes.`Dataset`"],
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
