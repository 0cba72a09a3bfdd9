"""The four stages through the command line, and their records in MLflow."""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import zlib
from importlib.metadata import version
from pathlib import Path

import mlflow.data
import numpy as np
import pytest
from mlflow import MlflowClient
from scipy import stats
from transformers import (
    AutoTokenizer,
    SwitchTransformersForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from pipelines.tracking.view import comparison_link

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def report(smoke):
    return json.loads(smoke[1].stdout)


@pytest.fixture(scope="module")
def client(smoke):
    return MlflowClient(f"sqlite:///{smoke[0]}/mlflow.db")


@pytest.fixture(scope="module")
def runs(client):
    experiment = client.get_experiment_by_name("smoke")
    return {
        run.info.run_name: client.get_run(run.info.run_id) for run in client.search_runs([experiment.experiment_id])
    }


def losses(client, runs, name, file="losses"):
    path = client.download_artifacts(runs[name].info.run_id, f"{file}.json")
    return np.array(json.loads(open(path).read()))


def test_stdout_has_only_json_and_the_files_exist(smoke, report):
    workdir = smoke[0]
    assert json.loads((workdir / "report.json").read_text()) == report
    assert (workdir / "report.md").read_text().startswith("# Fraction of the teacher's gain")
    assert (workdir / "fraction_kept.png").read_bytes().startswith(b"\x89PNG")
    assert "done in" in smoke[1].stderr and "Traceback" not in smoke[1].stderr
    assert not list(workdir.rglob("checkpoints"))


def test_the_report_follows_from_the_losses_in_mlflow(report, client, runs):
    baseline = losses(client, runs, "baseline", "baseline_losses")
    long = losses(client, runs, "long-baseline")
    documents = losses(client, runs, "report", "documents")
    assert np.unique(documents, return_counts=True)[1].tolist() == [1] * 32  # so all examples have the same weight
    assert report["baseline"]["quality"] == pytest.approx(-baseline.mean())
    assert report["long_baseline"]["quality"] == pytest.approx(-long.mean())
    assert report["long_baseline"]["steps"] == 24 and report["baseline"]["steps"] == 8
    for row in report["ratios"]:
        teacher = losses(client, runs, f"teacher {row['ratio']}")
        student = losses(client, runs, f"distill {row['ratio']}")
        assert row["teacher_quality"] == pytest.approx(-teacher.mean())
        assert row["student_quality"] == pytest.approx(-student.mean())
        assert runs[f"distill {row['ratio']}"].data.metrics["quality"] == pytest.approx(-student.mean(), abs=1e-6)
        assert row["compression"] == pytest.approx(1 - row["student_parameters"] / row["teacher_parameters"])
        for reference, suffix in ((baseline, ""), (long, "_long")):
            for model, key in ((student, "student_gain"), (teacher, "gain")):
                gain = reference.mean() - model.mean()
                low, high = row[f"{key}{suffix}_interval"]
                assert row[f"{key}{suffix}"] == pytest.approx(gain) and low < gain < high
                # Its length is that of Student's t interval for the mean of paired differences per document.
                by_document = [(reference - model)[documents == one].mean() for one in np.unique(documents)]
                student_t = stats.ttest_1samp(by_document, 0).confidence_interval(0.95)
                assert high - low == pytest.approx(student_t.high - student_t.low)
            fraction, interval = row[f"fraction_kept{suffix}"], row[f"fraction{suffix}_interval"]
            if low <= 0:
                reason = "reaches 0" if high >= 0 else f"worse than the {'long ' * bool(suffix)}baseline"
                assert fraction is None and interval is None and reason in row[f"fraction{suffix}_undefined"]
            else:
                assert fraction == pytest.approx((reference.mean() - student.mean()) / gain)
                assert interval[0] <= fraction <= interval[1]


def test_the_report_describes_its_data_and_models(report, runs, smoke):
    data = report["data"]
    assert (data["eval_split"], data["test_examples"], data["test_documents"]) == ("test", 32, 32)
    assert 0.05 < data["overlap"] < 0.5 and not data["too_few_documents"]
    logged = runs["report"].data.metrics
    assert logged["test_documents"] == 32 and logged["overlap"] == pytest.approx(data["overlap"], abs=1e-6)
    assert 0 < data["hardest"]["tokens"] < data["hardest"]["loss"] < 0.25
    assert logged["unseen"] == pytest.approx(data["unseen"], abs=1e-6)
    text = (smoke[0] / "report.md").read_text()
    assert "32 documents and 1 seed" in text and f"Overlap: {data['overlap']:.1%}" in text
    profile = json.loads(
        next(i for i in runs["distill e4"].inputs.dataset_inputs if "-test" in i.dataset.name).dataset.profile
    )
    assert profile["overlap"] == data["overlap"]
    assert (data["skipped_rows"], data["unknown_share"], data["restored_share"]) == (0, 0, 1)
    assert logged["skipped_rows"] == 0 and logged["restored_share"] == 1
    trained_on = next(i.dataset for i in runs["distill e4"].inputs.dataset_inputs if "-test" not in i.dataset.name)
    assert json.loads(trained_on.profile)["lost_share"] == 0


def test_every_data_set_leads_back_to_its_source(runs):
    """With MLflow's own get_source."""
    seen = set()
    for run in runs.values():
        for entry in run.inputs.dataset_inputs:
            seen.add((run.data.tags["stage"], next(tag.value for tag in entry.tags)))
            assert Path(mlflow.data.get_source(entry).load()) == Path(sysconfig.get_paths()["stdlib"])
    trained = ("baseline", "long-baseline", "teacher", "distill")
    assert seen == {(kind, part) for kind in trained for part in ("train", "test")} | {("report", "test")}


def test_runs_are_flat_finished_and_comparable(runs, report):
    assert len(runs) == 9
    for name, run in runs.items():
        assert run.info.status == "FINISHED" and "mlflow.parentRunId" not in run.data.tags
        assert name.startswith(run.data.tags["stage"]) and run.data.tags["data.digest"] == report["data"]["digest"]
        assert "version.torch" in run.data.tags and len(run.data.params) > 1
        assert run.data.tags["version.switch-distill"] == version("switch-distill")
    for row in report["ratios"]:
        student = runs[f"distill {row['ratio']}"].data
        assert student.metrics.get("fraction_kept") == pytest.approx(row["fraction_kept"], abs=1e-6)
        assert student.metrics["experts"] == row["experts"]
        assert student.tags[f"comparison.{report['fingerprint'][:12]}"] == "1"
    colours = {runs[f"distill {row['ratio']}"].data.tags["mlflow.runColor"] for row in report["ratios"]}
    assert len(colours) == len(report["ratios"])


def test_curves_are_complete(client, runs):
    for name, key, steps in (
        ("teacher e4", "train/load_balancing_loss", range(2, 17, 2)),
        ("distill e4", "train/kl", range(2, 9, 2)),
        ("baseline", "train/loss", range(2, 17, 2)),
        ("baseline", "short/train/loss", [8]),
        ("long-baseline", "train/loss", range(2, 9, 2)),
    ):
        history = client.get_metric_history(runs[name].info.run_id, key)
        assert sorted(point.step for point in history) == list(steps), (name, key)


def test_lineage_leads_from_the_student_to_the_digest_of_its_data(smoke, cli, report):
    row = report["ratios"][-1]
    done = cli("lineage", row["student_model_uri"], "--workdir", str(smoke[0]), "--json")
    assert done.returncode == 0, done.stderr
    tree = json.loads(done.stdout)
    assert tree["run_id"] == row["student_run_id"] and tree["stage"] == "distill"
    above = {node["stage"]: node for node in tree["inputs"]}
    assert set(above) == {"teacher", "init"} and above["teacher"]["run_id"] == row["teacher_run_id"]
    assert [node["model_id"] for node in above["init"]["inputs"]] == [above["teacher"]["model_id"]]
    for node in (tree, above["teacher"]):
        contexts = {dataset["context"]: dataset["digest"] for dataset in node["datasets"]}
        assert contexts["train"] == report["data"]["digest"] and "test" in contexts
    for reference in (row["student_run_id"], tree["model_id"], str(next(smoke[0].glob("stages/distill-e4-*/model")))):
        again = cli("lineage", reference, "--workdir", str(smoke[0]), "--json")
        assert json.loads(again.stdout)["model_id"] == tree["model_id"]
    drawn = cli("lineage", row["student_model_uri"], "--workdir", str(smoke[0]))
    assert report["data"]["digest"] in drawn.stdout


def test_lineage_is_read_from_mlflow_alone(smoke, cli, report, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    for name in ("mlflow.db", "tracking.json"):
        shutil.copy(smoke[0] / name, work / name)
    done = cli("lineage", report["ratios"][0]["student_model_uri"], "--workdir", str(work))
    assert done.returncode == 0 and report["data"]["digest"] in done.stdout


def test_the_registered_student_is_a_plain_t5_that_generates(report, client, tmp_path):
    name, version = report["ratios"][0]["student_model_uri"].removeprefix("models:/").split("/")
    source = client.get_model_version(name, version).source
    assert source.startswith("models:/m-")
    model_id = source.removeprefix("models:/")
    location = client.get_logged_model(model_id).artifact_location.removeprefix("file://")
    model = T5ForConditionalGeneration.from_pretrained(location).eval()
    tokenizer = AutoTokenizer.from_pretrained(location)
    ids = tokenizer("import <extra_id_0>", return_tensors="pt").input_ids
    assert tokenizer.convert_tokens_to_ids("<extra_id_0>") in ids[0]
    assert model.generate(ids, max_new_tokens=4).shape[1] > 1
    assert all(os.stat(os.path.join(location, file)).st_mode & 0o044 == 0o044 for file in os.listdir(location))


def test_the_teacher_is_read_by_plain_transformers(smoke):
    directory = next(smoke[0].glob("stages/teacher-e4-*/model"))
    model, report = SwitchTransformersForConditionalGeneration.from_pretrained(directory, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and model.config.num_experts == 4


def test_the_saved_view_shows_the_students_of_this_report(client, report):
    experiment = client.get_experiment_by_name("smoke")
    comparison = report["fingerprint"][:12]
    view = json.loads(experiment.tags[f"mlflow.sharedViewState.{comparison}"])
    state = json.loads(zlib.decompress(base64.b64decode(view["state"].removeprefix("deflate;"))))
    shown = client.search_runs([experiment.experiment_id], state["searchFilter"], order_by=["metrics.experts"])
    assert [run.info.run_name for run in shown] == ["distill e2", "distill e4"]
    axes = [(chart["xaxis"]["key"], chart["yaxis"]["key"]) for chart in state["compareRunCharts"] if "xaxis" in chart]
    assert axes == [("compression", "fraction_kept"), ("experts", "fraction_kept")]
    by_hand = {"mlflow.sharedViewState.older": "deflate;abc", "mlflow.sharedViewState.state": "{}"}
    link = comparison_link(experiment.experiment_id, by_hand | experiment.tags, "gone")
    assert link == comparison_link(experiment.experiment_id, experiment.tags, comparison) and comparison in link


def test_init_reports_the_origin_of_every_parameter(smoke, runs):
    metrics = runs["init e4"].data.metrics
    parts = [metrics[f"parameters_{fate}"] for fate in ("copied", "renamed", "fresh")]
    assert sum(parts) == metrics["parameters"] and all(parts)
    assert metrics["tensors_skipped_expert"] == 2 * 4 * 2 and metrics["tensors_skipped_router"] == 2
    assert not any(name.startswith("ffn_error") for name in metrics)  # no FFN is built from experts


def test_a_second_run_reuses_everything(smoke, cli):
    before = {path: path.stat().st_mtime_ns for path in smoke[0].glob("stages/*/*")}
    (student, *_) = (path.parent for path in smoke[0].glob("stages/distill-*/stage.json"))
    shutil.copytree(student / "model", student / "checkpoints" / "step-16")  # a kill before they were removed
    again = cli("run", "smoke", "--workdir", str(smoke[0]), "--json")
    assert again.returncode == 0 and again.stdout == smoke[1].stdout
    assert again.stderr.count("reused") == 9 and "done in" not in again.stderr
    assert {path: path.stat().st_mtime_ns for path in smoke[0].glob("stages/*/*")} == before


def test_a_missing_stage_is_named_with_the_command_that_makes_it(smoke, cli, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(smoke[0] / "data", work / "data")
    done = cli("distill", "smoke", "--ratio", "e4", "--workdir", str(work))
    assert done.returncode == 2 and done.stdout == ""
    assert "teacher e4 is missing" in done.stderr and "switch-distill teacher smoke --ratio e4" in done.stderr
    done = cli("report", "smoke", "--workdir", str(work))
    assert done.returncode == 2 and "switch-distill baseline smoke" in done.stderr
    assert not (work / "stages").exists()


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["run", "smok"], "did you mean smoke"),
        (["run", "smoke", "--set", "teacher.expert=[2]"], "did you mean experts"),
        (["teacher", "smoke", "--ratio", "e3"], "--ratio is 'e3'; smoke has e2, e4"),
        (["run", "smoke", "--set", "data.corpus=text:/nowhere/*"], "matches no file"),
        (["run", "smoke", "--nope"], "No such option"),
        (["run"], "Missing argument"),
        (["lineage", "x"], "holds no MLflow store"),
        (
            ["teacher", "smoke", "--set", "teacher.training.micro_batch_size=5"],
            "must be a multiple of micro_batch_size",
        ),
        (["teacher", "smoke", "--seed", "-1"], "Invalid value for '--seed'"),
        (["run", "smoke", "--set", "data.test_examples=1000000"], "data.test_examples is 1000000"),
    ],
)
def test_wrong_input_gives_one_sentence_and_exit_code_2(cli, tmp_path, arguments, message):
    work = [] if arguments == ["run"] else ["--workdir", str(tmp_path / "work")]
    done = cli(*arguments, *work)
    assert done.returncode == 2 and done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if not line.startswith("Preparing")]
    assert len(errors) == 1 and message in errors[0]
    assert not list((tmp_path / "work").rglob("stages"))


def test_the_lineage_of_an_unknown_model_is_an_error(smoke, cli):
    for reference in ("models:/nobody/1", "0" * 32, "m-" + "0" * 32, "nowhere"):
        done = cli("lineage", reference, "--workdir", str(smoke[0]))
        assert done.returncode == 2 and reference in done.stderr and "Traceback" not in done.stderr


def test_presets_and_config_are_printed(cli):
    listed = cli("presets", "--json")
    assert {"smoke", "text", "switch-base"} <= set(json.loads(listed.stdout))
    shown = cli("config", "text", "--set", "distill.hard_fraction=0.5", "--json")
    assert json.loads(shown.stdout)["distill"]["hard_fraction"] == 0.5


@pytest.mark.slow  # four stages twice; test_loaded_models and test_hub load such models
def test_a_loaded_teacher_and_a_loaded_baseline(smoke, cli, tmp_path):
    """Checkpoints in the hub's format instead of training, as for the public checkpoints."""
    teacher = next(smoke[0].glob("stages/teacher-e4-*/model"))
    baseline = next(smoke[0].glob("stages/baseline-*/model"))
    overrides = [
        "teacher.experts=[]",
        f"teacher.checkpoints={{e4: {teacher}}}",
        f"data.tokenizer={teacher}",
        f"baseline.checkpoint={baseline}",
        "distill.training.steps=4",
    ]
    flags = [flag for override in overrides for flag in ("--set", override)]
    done = cli("run", "smoke", *flags, "--workdir", str(tmp_path / "work"), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["long_baseline"].items() <= report["baseline"].items()  # a loaded teacher takes no steps
    assert report["ratios"][0]["experts"] == 4 and len(report["ratios"]) == 1

    wrong = [flag.replace("e4:", "e8:") for flag in flags]
    done = cli("teacher", "smoke", *wrong, "--workdir", str(tmp_path / "work"))
    assert done.returncode == 2 and "has 4 experts; name it e4" in done.stderr
    assert not list((tmp_path / "work" / "stages").glob("teacher-e8-*"))


@pytest.mark.parametrize(
    "stage,step,kind,exit_code,checkpoint,files",
    [
        ("teacher", 11, signal.SIGKILL, -9, "checkpoints/step-00000008", ["model/model.safetensors"]),
        pytest.param("teacher", 5, signal.SIGINT, 130, None, ["losses.json"], marks=pytest.mark.slow),
        # In the branch of the full length, after the trunk and the short baseline.
        pytest.param(
            *("baseline", 14, signal.SIGTERM, 143, "checkpoints/to-16/step-00000008", ["model/model.safetensors"]),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_interrupted_stage_continues_and_ends_with_the_same_bytes(
    smoke, cli, interrupted, tmp_path, stage, step, kind, exit_code, checkpoint, files
):
    work = tmp_path / "work"
    shutil.copytree(smoke[0] / "data", work / "data")
    ratio = ["--ratio", "e4"] if stage == "teacher" else []
    arguments = [stage, "smoke", *ratio, "--workdir", str(work)]
    assert interrupted(arguments, step, kind) == exit_code
    directory = next(work.glob("stages/*/"))
    assert checkpoint is None or (directory / checkpoint).is_dir()
    first = json.loads((directory / "run.json").read_text())["run_id"]
    status = MlflowClient(f"sqlite:///{work}/mlflow.db").get_run(first).info.status
    assert status == ("RUNNING" if kind == signal.SIGKILL else "KILLED")

    done = cli(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["run_id"] == first
    run = MlflowClient(f"sqlite:///{work}/mlflow.db").get_run(first)
    assert run.info.status == "FINISHED" and len(run.outputs.model_outputs) == 1
    for file in [*files, *(["baseline_losses.json", "full_losses.json"] if stage == "baseline" else [])]:
        whole = next(smoke[0].glob(f"stages/{stage}-{'e4-' if ratio else ''}*/{file}"))
        assert (directory / file).read_bytes() == whole.read_bytes()
    assert not (directory / "checkpoints").exists()


@pytest.mark.parametrize("call", ["create_run", "log_batch", "log_inputs"])
def test_a_run_that_is_interrupted_while_it_begins_is_killed_and_continues(smoke, cli, patched_cli, tmp_path, call):
    """Ctrl-C arrives when the store has done a call, so the run exists, and nobody knows it yet."""
    work = tmp_path / "work"
    shutil.copytree(smoke[0] / "data", work / "data")
    code = f"""
        from mlflow import MlflowClient
        done = MlflowClient.{call}
        def interrupted(*arguments, **named):
            done(*arguments, **named)
            MlflowClient.{call} = done
            raise KeyboardInterrupt
        MlflowClient.{call} = interrupted
    """
    process = patched_cli(code, "teacher", "smoke", "--ratio", "e2", "--workdir", str(work))
    process.communicate()
    client = MlflowClient(f"sqlite:///{work}/mlflow.db")
    [run] = client.search_runs(["1"])
    assert process.returncode == 130 and run.info.status == "KILLED"
    done = cli("teacher", "smoke", "--ratio", "e2", "--workdir", str(work))
    assert done.returncode == 0, done.stderr
    assert [(one.info.run_id, one.info.status) for one in client.search_runs(["1"])] == [(run.info.run_id, "FINISHED")]


@pytest.mark.slow  # test_processes compares the losses of two processes and of one
def test_two_processes_give_the_results_of_one(smoke, cli, tmp_path):
    """The global batches are the same, so the baselines differ only by the order of additions."""
    one, two = tmp_path / "one", tmp_path / "two"
    for work in (one, two):
        shutil.copytree(smoke[0] / "data", work / "data")
    arguments = ["baseline", "smoke", "--set", "precision=float32", "--json", "--workdir"]
    alone = json.loads(cli(*arguments, str(one)).stdout)[0]["metrics"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "pipelines.cli"]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": "", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *arguments, str(two)], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["metrics"] == pytest.approx(alone, abs=1e-4)
    losses = [json.loads(next(w.glob("stages/*/baseline_losses.json")).read_text()) for w in (one, two)]
    np.testing.assert_allclose(*losses, atol=1e-3)


def test_a_baseline_of_another_shape_is_refused_before_anything_is_trained(smoke, cli, tmp_path):
    """A difference between models of two shapes does not measure the effect of the teacher."""
    work = tmp_path / "work"
    shutil.copytree(smoke[0], work)
    wider = tmp_path / "wider"
    shutil.copytree(next(smoke[0].glob("stages/baseline-*/model")), wider)
    config = json.loads((wider / "config.json").read_text())
    T5ForConditionalGeneration(T5Config.from_dict({**config, "d_ff": 128})).save_pretrained(wider)
    before = sorted(work.rglob("*"))
    for command in ("baseline", "distill", "report"):
        done = cli(command, "smoke", "--set", f"baseline.checkpoint={wider}", "--workdir", str(work))
        assert done.returncode == 2 and "differ in d_ff 64 and 128; set baseline.checkpoint" in done.stderr
    assert sorted(work.rglob("*")) == before
