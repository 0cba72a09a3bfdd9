"""The view that a report saves in the MLflow UI."""

import base64
import io
import json
import zlib
from types import SimpleNamespace

import pytest
from rich.console import Console

from distill.errors import UserError
from pipelines.tracking.view import publish_view, serve_ui


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


def shown(workdir) -> str:
    """What ``switch-distill ui`` prints for a tracking server with the experiment ``text`` and two views."""
    views = {
        f"mlflow.sharedViewState.{key}": json.dumps({"createdAt": at}) for key, at in (("0" * 12, 1), ("1" * 12, 2))
    }
    found = [SimpleNamespace(name="text", experiment_id="1", tags=views)]
    client = SimpleNamespace(search_experiments=lambda order_by: found)
    console = Console(file=io.StringIO())
    serve_ui(SimpleNamespace(client=client, uri="http://host:1"), workdir, "127.0.0.1", 5000, console)
    return console.file.getvalue()


def test_the_link_opens_the_view_of_the_report(tmp_path):
    assert shown(tmp_path).endswith(f"viewStateShareKey={'1' * 12}\n")  # the newest
    (tmp_path / "report.json").write_text(json.dumps({"fingerprint": "0" * 32}))
    assert shown(tmp_path).startswith("text: http://host:1/") and shown(tmp_path).endswith(f"={'0' * 12}\n")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"fingerprint": 3}', '"fingerprint"'])
def test_a_damaged_report_is_named(tmp_path, text):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(UserError, match=r"report.json is damaged: .*; delete it"):
        shown(tmp_path)
