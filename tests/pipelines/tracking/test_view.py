"""The view that a report saves in the MLflow UI."""

import base64
import json
import zlib
from types import SimpleNamespace

from pipelines.tracking.view import publish_view


def saved(metrics: list[str]) -> dict:
    """The state of a view with these metrics of a task."""
    tags: dict[str, str] = {}
    client = SimpleNamespace(set_experiment_tag=lambda experiment, key, value: tags.update({key: value}))
    publish_view(SimpleNamespace(client=client, experiment="1"), "text", "abc", ["ratio"], metrics)
    (view,) = tags.values()
    return json.loads(zlib.decompress(base64.b64decode(json.loads(view)["state"].removeprefix("deflate;"))))


def bars(state: dict) -> list[str]:
    return [chart["metricKey"] for chart in state["compareRunCharts"] if chart["type"] == "BAR"]


def test_each_metric_of_a_task_has_columns_and_bars():
    state = saved(["chrf", "error_rate"])
    of_metrics = ["chrf", "chrf_fraction_kept", "error_rate", "error_rate_fraction_kept"]
    assert bars(state) == ["fraction_kept", "fraction_kept_long", *of_metrics]
    assert {f"metrics.`{name}`" for name in of_metrics} < set(state["selectedColumns"])
    uuids = [chart["uuid"] for chart in state["compareRunCharts"]]
    assert len(set(uuids)) == len(uuids)


def test_without_a_task_there_are_no_metrics():
    state = saved([])
    assert bars(state) == ["fraction_kept", "fraction_kept_long"]
    assert state["selectedColumns"][-3:] == ["metrics.`parameters`", "attributes.`Models`", "attributes.`Dataset`"]
