"""The figures of a model card are those of the exported student."""

import json
from types import SimpleNamespace

import pytest

from pipelines.deploy.card import report_row

FACTS = {"baseline": 1, "long_baseline": 2, "data": 3}


def row(variant: str | None, *seeds: int, ratio: str = "e2") -> dict:
    return {"ratio": ratio, "variant": variant, "seeds": list(seeds or [0])}


class Reports:
    """A store with report runs, the newest first: the rows of a report, and its inputs (role -> model id)."""

    def __init__(self, directory, *reports: tuple[list[dict], dict[str, str]]):
        self.client, self.runs = self, []
        self.directory = directory
        for number, (rows, inputs) in enumerate(reports):
            (directory / f"{number}.json").write_text(json.dumps({**FACTS, "ratios": rows}))
            tags = {f"input.{role}": model_id for role, model_id in inputs.items()}
            info = SimpleNamespace(run_id=str(number), status="FINISHED")
            self.runs.append(SimpleNamespace(info=info, data=SimpleNamespace(tags=tags)))

    def get_run(self, run_id):
        return SimpleNamespace(info=SimpleNamespace(experiment_id="1"))

    def search_runs(self, experiments, condition, order_by):
        return self.runs

    def download_artifacts(self, run_id, name):
        return self.directory / f"{run_id}.json"


def exported(variant: str | None, model_id: str, ratio: str | None = "e2") -> dict:
    """The lineage of an export of a student whose own run has this variant."""
    return {"inputs": [{"run_id": "run", "model_id": model_id, "ratio": ratio, "variant": variant}]}


def test_a_renamed_variant_gets_the_row_of_its_model_and_not_of_its_old_name(tmp_path):
    """Another student has the old name now."""
    rows = [row("paper"), row("wide")]
    store = Reports(tmp_path, (rows, {"distill e2 paper": "m-new", "distill e2 wide": "m-old"}))
    assert report_row(store, exported("paper", "m-old")) == {**rows[1], **FACTS}
    assert report_row(store, exported("paper", "m-new")) == {**rows[0], **FACTS}


def test_a_ratio_in_another_report_may_be_of_another_student(tmp_path):
    rows = [row(None, 0, 1, ratio="e2"), row(None, 0, 1, ratio="e4")]
    inputs = {f"distill {ratio}{seed}": f"m-{ratio}{seed}" for ratio in ("e2", "e4") for seed in ("", " seed 1")}
    store = Reports(tmp_path, (rows, inputs))
    assert report_row(store, exported(None, "m-e4 seed 1", "e2"))["ratio"] == "e4"
    assert report_row(store, exported(None, "m-e2", "e2"))["ratio"] == "e2"


def test_the_newest_report_with_the_student_as_a_student_counts(tmp_path):
    newest = ([row("other")], {"distill e2 other": "m-other"})
    as_baseline = ([row("wide")], {"baseline": "m-mine", "distill e2 wide": "m-other"})
    own = ([row("paper"), row("wide")], {"distill e2 paper": "m-mine", "distill e2 wide": "m-other"})
    store = Reports(tmp_path, newest, as_baseline, own)
    assert report_row(store, exported("wide", "m-mine")) == {**own[0][0], **FACTS}


@pytest.mark.parametrize("status,model_id", [("FAILED", "m-1"), ("FINISHED", "m-2")])
def test_there_is_no_row_without_a_finished_report(tmp_path, status, model_id):
    store = Reports(tmp_path, ([row(None)], {"distill e2": "m-1"}))
    store.runs[0].info.status = status
    assert report_row(store, exported(None, model_id)) is None
