"""Students of several sizes of one teacher, through the command line: report, plot, lineage of the files, export."""

import json
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from rich.console import Console
from safetensors import safe_open
from transformers import T5ForConditionalGeneration

from pipelines.config.run_config import load_config
from pipelines.workdir.disk_budget import _parameters
from pipelines.workdir.workspace import Workspace

VARIANTS = (
    "variants={x1: {}, x2: {student: {d_ff: 128}}, shallow: {student: {num_decoder_layers: 1}}, "
    "both: {student: {d_ff: 96, num_decoder_layers: 1, ffn_init: fit, calibration_examples: 64}}}"
)
OPTIONS = ["teacher.experts=[2]", "distill.hard_fraction=1.0", VARIANTS]
SHAPES = {"x1": (64, 2), "x2": (128, 2), "shallow": (64, 1), "both": (96, 1)}


@pytest.fixture(scope="module")
def finished(cli, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("sizes") / "work"
    done = cli("run", "smoke", "--workdir", str(workdir), "--json", *(f"--set={option}" for option in OPTIONS))
    assert done.returncode == 0, done.stderr
    return workdir, json.loads(done.stdout)


def stage_of(workdir: Path, kind: str, variant: str) -> Path:
    (found,) = (
        path.parent
        for path in workdir.glob(f"stages/{kind}-*/stage.json")
        if json.loads(path.read_text())["title"] == f"{kind} e2 {variant}"
    )
    return found


def stored_parameters(directory: Path) -> int:
    """The values in the files of a model, which hold a tied tensor once."""
    with safe_open(directory / "model.safetensors", "pt") as file:
        sizes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    return sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in sizes.values())


def test_a_row_has_the_size_of_its_own_student(finished):
    workdir, report = finished
    for row in report["ratios"]:
        model = stage_of(workdir, "distill", row["variant"]) / "model"
        config = json.loads((model / "config.json").read_text())
        sizes = config["d_ff"], config["num_decoder_layers"]
        assert sizes == SHAPES[row["variant"]] == (row["student_d_ff"], row["student_decoder_layers"])
        assert row["student_parameters"] == stored_parameters(model)
        assert row["compression"] == pytest.approx(1 - row["student_parameters"] / row["teacher_parameters"])
    rows = {row["variant"]: row for row in report["ratios"]}
    assert rows["x1"]["student_parameters"] == report["baseline"]["parameters"]
    # The preset has two blocks per stack, and d_model 32; every FFN has a wi and a wo.
    assert rows["x2"]["student_parameters"] - rows["x1"]["student_parameters"] == 4 * 2 * 32 * 64


def test_operations_are_those_of_the_student(finished):
    """A student with hard labels alone needs no passes of its teacher. A step takes three forward passes."""
    rows = {row["variant"]: row for row in finished[1]["ratios"]}
    tokens = rows["x1"]["student_tokens"]
    wider = 3 * 2 * tokens * 2 * 2 * 32 * 64  # two FFNs for every token, with two more products of 32 x 64
    assert rows["x2"]["student_flops"] - rows["x1"]["student_flops"] == pytest.approx(wider, rel=1e-4)
    assert rows["shallow"]["student_flops"] < 0.9 * rows["x1"]["student_flops"]


def test_the_report_draws_the_sizes_and_keeps_the_plot(finished):
    workdir, report = finished
    assert (workdir / "sizes.png").read_bytes().startswith(b"\x89PNG")
    text = (workdir / "report.md").read_text()
    assert "Students of every size are compared with a baseline of" in text and "| e2 | shallow |" in text
    client = MlflowClient(f"sqlite:///{workdir}/mlflow.db")
    experiment = client.get_experiment_by_name("smoke").experiment_id
    (run,) = client.search_runs([experiment], "tags.stage = 'report'")
    assert "sizes.png" in {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    (stage,) = workdir.glob("stages/report-*/stage.json")
    assert "sizes.png" in json.loads(stage.read_text())["digests"]


def test_a_baseline_can_have_the_width_of_a_student(finished, cli, tmp_path):
    """The comparison with a dense model of a wide student's size trains two baselines, and reuses all other stages."""
    workdir = shutil.copytree(finished[0], tmp_path / "work")
    options = [*OPTIONS[:2], "variants={x2: {student: {d_ff: 128}}}", "baseline.d_ff=128", "name=wide"]
    done = cli("run", "smoke", "--workdir", str(workdir), "--json", *(f"--set={option}" for option in options))
    assert done.returncode == 0, done.stderr
    report, (earlier,) = json.loads(done.stdout), [r for r in finished[1]["ratios"] if r["variant"] == "x2"]
    (row,) = report["ratios"]
    assert report["baseline"]["parameters"] == row["student_parameters"] == earlier["student_parameters"]
    assert report["baseline"]["quality"] != finished[1]["baseline"]["quality"]
    assert row["student_quality"] == earlier["student_quality"]
    new = {
        path.name.rpartition("-")[0]
        for path in workdir.glob("stages/*")
        if not (finished[0] / "stages" / path.name).exists()
    }
    assert new == {"baseline", "long-baseline", "report"}
    (model,) = (
        path.parent / "model"
        for path in workdir.glob("stages/baseline-*/stage.json")
        if not (finished[0] / "stages" / path.parent.name).exists()
    )
    assert T5ForConditionalGeneration.from_pretrained(model).config.d_ff == 128
    workspace = Workspace(load_config("smoke", options), "smoke", workdir, Console(quiet=True))
    for stage in workspace.stages:
        if stage.command == "baseline":
            assert _parameters(workspace, stage) == stored_parameters(stage.directory(workdir) / "model")


def test_the_disk_space_of_every_stage_is_that_of_its_student(finished):
    workspace = Workspace(load_config("smoke", OPTIONS), "smoke", finished[0], Console(quiet=True))
    stages = [stage for stage in workspace.stages if stage.kind in ("init", "distill")]
    assert len(stages) == 8
    for stage in stages:
        assert _parameters(workspace, stage) == stored_parameters(stage.directory(finished[0]) / "model")


def test_a_fitted_student_of_another_size_has_the_errors_of_its_layers(finished):
    facts = json.loads((stage_of(finished[0], "init", "both") / "stage.json").read_text())
    errors = {name for name in facts["metrics"] if name.startswith("ffn_error/")}
    assert errors == {"ffn_error/encoder.1"}  # the decoder keeps its first layer, which has no experts
    assert facts["facts"]["parameters"]["skipped_layer"] and facts["facts"]["parameters"]["added"]


def test_an_export_answers_like_its_student(finished, cli, tmp_path):
    """The export checks its own parity; here its weights also give plain transformers' logits of the stage's model."""
    workdir, report = finished
    row = next(row for row in report["ratios"] if row["variant"] == "both")
    output = tmp_path / "export"
    options = ["--format", "hf", "--workdir", str(workdir), "--output", str(output), "--json"]
    done = cli("export", row["student_model_uri"], *options)
    assert done.returncode == 0, done.stderr
    parity = json.loads(done.stdout)["parity"]
    assert abs(parity["quality_difference"]) < 1e-5 and parity["greedy_agreement"] == 1
    exported, own = (
        T5ForConditionalGeneration.from_pretrained(path).state_dict()
        for path in (output, stage_of(workdir, "distill", "both") / "model")
    )
    assert exported.keys() == own.keys() and all((exported[name] == own[name]).all() for name in own)
    card = (output / "model_card.md").read_text()
    assert f"{row['student_parameters']:,} of {row['teacher_parameters']:,}" in card


def test_the_plot_does_not_stay_when_all_students_have_one_size(finished, cli, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "work")
    options = [f"--set={option}" for option in OPTIONS[:2]]
    done = cli("run", "smoke", "--workdir", str(workdir), *options, "--set", "variants={x1: {}}")
    assert done.returncode == 0, done.stderr
    assert not (workdir / "sizes.png").exists()
    row = json.loads((workdir / "report.json").read_text())["ratios"][0]
    assert "student_d_ff" not in row and "Student and baseline have" in (workdir / "report.md").read_text()
