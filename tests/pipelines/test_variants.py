"""Several students of each teacher, over several seeds, through the command line."""

import json

import numpy as np
import pytest
from mlflow import MlflowClient

VARIANTS = "variants={paper: {}, hard: {distill: {hard_fraction: 1.0}}, fresh: {student: {non_expert_init: random}}}"


@pytest.fixture(scope="module")
def finished(cli, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("variants") / "work"
    # Enough steps for the teacher of every seed to gain.
    options = ["teacher.experts=[2]", "teacher.training.steps=64", "seeds=[0, 1]", VARIANTS]
    done = cli("run", "smoke", "--workdir", str(workdir), "--json", *(f"--set={option}" for option in options))
    assert done.returncode == 0, done.stderr
    return workdir, json.loads(done.stdout)


def test_a_row_for_each_variant_from_the_losses_of_its_own_students(finished):
    workdir, report = finished
    assert [row["variant"] for row in report["ratios"]] == ["paper", "hard", "fresh"]
    assert len({row["student_run_id"] for row in report["ratios"]}) == 3
    assert len({row["teacher_run_id"] for row in report["ratios"]}) == 1
    for row in report["ratios"]:
        stages = [json.loads(path.read_text()) for path in workdir.glob("stages/distill-*/stage.json")]
        mine = [stage for stage in stages if f"e2 {row['variant']}" in stage["title"]]
        assert {stage["title"] for stage in mine} == {
            f"distill e2 {row['variant']}",
            f"distill e2 {row['variant']} seed 1",
        }
        assert row["student_quality"] == pytest.approx(np.mean([stage["metrics"]["quality"] for stage in mine]))
    fresh = next(row for row in report["ratios"] if row["variant"] == "fresh")
    hard = next(row for row in report["ratios"] if row["variant"] == "hard")
    assert fresh["student_flops"] > hard["student_flops"]  # hard labels alone need no forward passes of the teacher
    assert fresh["student_tokens"] == hard["student_tokens"] == report["baseline"]["tokens"]


def test_variants_are_compared_seed_by_seed(finished):
    report = finished[1]
    kept = {row["variant"]: np.array(row["fraction_kept_by_seed"]) for row in report["ratios"]}
    assert [(one["variant"], one["to"]) for one in report["differences"]] == [("hard", "paper"), ("fresh", "paper")]
    for one in report["differences"]:
        assert one["by_seed"] == pytest.approx((kept[one["variant"]] - kept["paper"]).tolist())
        assert one["interval"][0] <= one["difference"] <= one["interval"][1]


def test_stages_that_variants_share_are_computed_once(finished):
    titles = sorted(json.loads(path.read_text())["title"] for path in finished[0].glob("stages/*/stage.json"))
    assert titles.count("teacher e2") == titles.count("baseline") == 1
    assert [title for title in titles if title.startswith("init")] == [
        "init e2 fresh",
        "init e2 fresh seed 1",
        "init e2 paper",
        "init e2 paper seed 1",
    ]


def test_mlflow_can_group_by_variant_and_seed(finished):
    workdir, report = finished
    client = MlflowClient(f"sqlite:///{workdir}/mlflow.db")
    experiment = client.get_experiment_by_name("smoke").experiment_id
    runs = client.search_runs([experiment], "tags.stage = 'distill'")
    assert {(run.data.params["variant"], run.data.params["seed"]) for run in runs} == {
        (variant, seed) for variant in ("paper", "hard", "fresh") for seed in ("0", "1")
    }
    for row in report["ratios"]:
        of_variant = [run for run in runs if run.data.params["variant"] == row["variant"]]
        if row["fraction_kept"] is not None:
            by_seed = sorted(run.data.metrics["fraction_kept_of_seed"] for run in of_variant)
            assert by_seed == pytest.approx(sorted(row["fraction_kept_by_seed"]), abs=1e-6)
        assert client.get_registered_model(f"smoke-student-e2-{row['variant']}").latest_versions


def test_a_teachers_routing_is_drawn(finished):
    workdir, report = finished
    client = MlflowClient(f"sqlite:///{workdir}/mlflow.db")
    run_id = report["ratios"][0]["teacher_run_id"]
    assert "routing.png" in {artifact.path for artifact in client.list_artifacts(run_id)}


@pytest.mark.parametrize(
    "variants,message",
    [
        ("{a: {teacher: {jitter: 0.0}}}", "variants.a changes teacher; .* only student and distill may differ"),
        ("{a: {distill: {hard_fraktion: 1.0}}}", "in variants.a, there is no key distill.hard_fraktion; did you mean"),
        ("{A B: {}}", "variants.A B"),
        ("{a: 3}", "variants.a is 3"),
    ],
)
def test_a_wrong_variant_gives_one_sentence(variants, message):
    from distill.errors import UserError
    from pipelines.config.run_config import load_config

    with pytest.raises(UserError, match=message):
        load_config("smoke", [f"variants={variants}"])
