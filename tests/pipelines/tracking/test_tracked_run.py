import json

import pytest

from distill.errors import UserError
from distill.io.files import directory_digest
from pipelines.tracking import store_uri
from pipelines.tracking.store import Store
from pipelines.tracking.store_uri import redacted, without_credentials
from pipelines.tracking.tracked_run import TrackedRun, describe_run


@pytest.mark.parametrize(
    "uri,shown",
    [
        ("https://me:secret@host:5000/x", "https://host:5000/x"),
        ("https://host:5000", "https://host:5000"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
        ("postgresql://host/db?user=me&password=secret&x=1", "postgresql://host/db?user=me&password=***&x=1"),
        ("http://me:secret@[broken", "http://[broken"),
    ],
)
def test_credentials_are_not_shown(uri, shown):
    assert redacted(uri) == shown


def test_an_error_that_quotes_the_store_is_shown_without_credentials(monkeypatch):
    monkeypatch.setattr(store_uri, "ASKED_FOR", "https://me:secret@host/mlflow/")
    said = without_credentials("request to https://me:secret@host/mlflow/api/2.0 failed, see https://me:secret@host")
    assert said == "request to https://host/mlflow/api/2.0 failed, see https://host"


def test_stages_of_one_store_are_not_mixed_with_another(tmp_path, monkeypatch):
    (tmp_path / "tracking.json").write_text(json.dumps({"store": "https://elsewhere"}))
    monkeypatch.setattr(store_uri, "ASKED_FOR", None)
    with pytest.raises(UserError, match="tracked in https://elsewhere, not in the work directory's own store"):
        Store(tmp_path, "x")
    assert not (tmp_path / "mlflow.db").exists()


def test_a_store_that_cannot_be_used_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(store_uri, "ASKED_FOR", "nonsense://me:secret@host")
    with pytest.raises(UserError, match="nonsense://host cannot be used") as raised:
        Store(tmp_path, "x")
    assert "secret" not in str(raised.value)


def test_a_digest_sees_names_and_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    first = directory_digest(tmp_path)
    (tmp_path / "a").write_bytes(b"2")
    second = directory_digest(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert len({first, second, directory_digest(tmp_path)}) == 3 and len(first) == 32


def test_a_run_continued_elsewhere_records_both_hosts(tmp_path):
    for threads in ("2", "1", "2"):
        describe_run(tmp_path, {"threads": threads, "stage": "teacher"})
    tags = json.loads((tmp_path / "run.json").read_text())["tags"]
    assert (tags["threads"], tags["stage"]) == ("2, then 1", "teacher")


class Killed(BaseException):
    pass


class KilledAfter:
    """A client whose process is killed right after its ``calls``-th call."""

    def __init__(self, client, calls):
        self.client, self.left = client, calls

    def __getattr__(self, name):
        def call(*values, **named):
            result = getattr(self.client, name)(*values, **named)
            self.left -= 1
            if not self.left:
                raise Killed
            return result

        return call


def log_a_stage(store, directory):
    describe_run(directory, {"stage": "distill"})
    tracked = TrackedRun(store, directory, "distill e2")
    tracked.log_model_output("student", directory / "model", {}, upload=True)
    tracked.close("FINISHED")


@pytest.mark.parametrize("calls", range(1, 9))
def test_a_process_killed_after_any_call_leaves_one_run_and_one_model(tmp_path, monkeypatch, calls):
    monkeypatch.setattr(store_uri, "ASKED_FOR", None)
    (tmp_path / "stage/model").mkdir(parents=True)
    (tmp_path / "stage/model/weights").write_bytes(b"1")
    store = Store(tmp_path, "x")
    client = store.client
    store.client = KilledAfter(client, calls)
    with pytest.raises(Killed):
        log_a_stage(store, tmp_path / "stage")
    store.client = client
    log_a_stage(store, tmp_path / "stage")
    (run,) = client.search_runs([store.experiment])
    ready = [model for model in client.search_logged_models([store.experiment]) if model.status == "READY"]
    assert (
        run.info.status == "FINISHED"
        and run.info.run_id == json.loads((tmp_path / "stage/run.json").read_text())["run_id"]
    )
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id for model in ready]
    assert len(ready) == 1


def test_params_are_kept_whole_up_to_the_length_that_mlflow_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(store_uri, "ASKED_FOR", None)
    store = Store(tmp_path, "x")
    describe_run(tmp_path, {"stage": "distill"})
    tracked = TrackedRun(store, tmp_path, "distill e2")
    tracked.log_params({"data": {"long": "x" * 6000, "longer": "y" * 6001, "list": [1, 2]}})
    params = store.client.get_run(tracked.run_id).data.params
    assert params == {"data.long": "x" * 6000, "data.longer": "y" * 6000, "data.list": "[1, 2]"}


def test_a_param_that_an_interrupted_process_logged_keeps_its_value(tmp_path, monkeypatch):
    """A variant may have got another name since. MLflow would refuse it for ever."""
    monkeypatch.setattr(store_uri, "ASKED_FOR", None)
    store = Store(tmp_path, "x")
    describe_run(tmp_path, {"stage": "label"})
    TrackedRun(store, tmp_path, "label e4 a").log_params({"variant": "a", "ratio": "e4"})
    tracked = TrackedRun(store, tmp_path, "label e4 b")
    tracked.log_params({"variant": "b", "ratio": "e4", "seed": 0})
    assert store.client.get_run(tracked.run_id).data.params == {"variant": "a", "ratio": "e4", "seed": "0"}


def test_a_table_that_is_logged_again_has_its_rows_once(tmp_path, monkeypatch):
    """MLflow appends to a table. A stage that was interrupted while it was published logs everything again."""
    monkeypatch.setattr(store_uri, "ASKED_FOR", None)
    store = Store(tmp_path, "x")
    describe_run(tmp_path, {"stage": "report"})
    columns = {"input": ["a", "b"], "teacher e8": ["1", "日本\n"]}
    for _ in range(2):
        tracked = TrackedRun(store, tmp_path, "report")
        tracked.log_table("examples.json", columns)
    assert store.client.load_table(store.experiment, "examples.json").to_dict("list") == columns
    assert "examples.json" in store.client.get_run(tracked.run_id).data.tags["mlflow.loggedArtifacts"]


def test_a_figure_replaces_the_tag_that_it_is_undefined(tmp_path, monkeypatch):
    monkeypatch.setattr(store_uri, "ASKED_FOR", None)
    store = Store(tmp_path, "x")
    for name in ("report", "distill e2"):
        (tmp_path / name).mkdir()
        describe_run(tmp_path / name, {"stage": name})
    report, student = (TrackedRun(store, tmp_path / name, name) for name in ("report", "distill e2"))
    report.set_tags({"fraction_kept": "undefined", "gain": "undefined", "ratio": "e2"}, student.run_id)
    report.log_results({"fraction_kept": 0.5}, run_id=student.run_id)
    data = store.client.get_run(student.run_id).data
    assert data.metrics == {"fraction_kept": 0.5} and "fraction_kept" not in data.tags
    assert (data.tags["gain"], data.tags["ratio"]) == ("undefined", "e2")
