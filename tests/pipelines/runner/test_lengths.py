"""Students and long baselines of several lengths in one run, through the command line."""

import csv
import json
import signal

import numpy as np
import pytest
from mlflow import MlflowClient

STEPS = ("--set", "distill.training.steps=16", "--set", "distill.lengths=[4, 8]")
# A baseline of 3 steps is so weak that the teacher has a certain gain, and so a fraction.
OPTIONS = ("--set", "teacher.experts=[2]", "--set", "baseline.steps=3", *STEPS)
LOSSES = ("after-4-losses.json", "after-8-losses.json", "losses.json")


def directory(work, kind="distill"):
    return next(work.glob(f"stages/{kind}-*/after-8-losses.json")).parent


@pytest.fixture(scope="module")
def finished(cli, tmp_path_factory):
    work = tmp_path_factory.mktemp("lengths") / "work"
    done = cli("run", "smoke", *OPTIONS, "--workdir", str(work), "--json")
    assert done.returncode == 0, done.stderr
    return work, json.loads(done.stdout)


@pytest.mark.parametrize("command,kind", [("distill", "distill"), ("baseline", "long-baseline")])
@pytest.mark.parametrize("steps", [8, 16])
def test_a_length_is_the_run_with_so_many_steps(finished, cli, command, kind, steps):
    """The same losses, to the last digit. The cooldown of a branch is that of its own length."""
    made = directory(finished[0], kind)
    options = ("--set", "teacher.experts=[2]", "--set", f"distill.training.steps={steps}")
    ratio = ("--ratio", "e2") if command == "distill" else ("--set", "baseline.steps=3")
    done = cli(command, "smoke", *options, *ratio, "--workdir", str(finished[0]), "--json")
    assert done.returncode == 0, done.stderr
    alone = next(
        path for path in (finished[0] / "stages").glob(f"{kind}-*") if path != made and steps_of(path) == steps
    )
    name = "losses.json" if steps == 16 else f"after-{steps}-losses.json"
    assert (made / name).read_bytes() == (alone / "losses.json").read_bytes()


def steps_of(path):
    return json.loads((path / "stage.json").read_text())["facts"]["steps"]


def test_the_report_has_a_point_for_each_length(finished):
    work, report = finished
    (row,) = report["ratios"]
    assert None not in [point["fraction_kept"] for point in row["lengths"]]
    assert [point["steps"] for point in row["lengths"]] == [4, 8, 16]
    for point, name in zip(row["lengths"], LOSSES, strict=True):
        losses = json.loads((directory(work) / name).read_text())
        assert point["student_quality"] == pytest.approx(-np.mean(losses))
        long = -np.mean(json.loads((directory(work, "long-baseline") / name).read_text()))
        assert point["long_baseline_quality"] == pytest.approx(long)
        for suffix, against in (("", report["baseline"]["quality"]), ("_long", long)):
            assert point[f"student_gain{suffix}"] == pytest.approx(point["student_quality"] - against)
            if (kept := point[f"fraction_kept{suffix}"]) is not None:
                gain = row["teacher_quality"] - against
                assert kept == pytest.approx((point["student_quality"] - against) / gain)
    lines = list(csv.DictReader((work / "steps.csv").read_text().splitlines()))
    assert [line["steps"] for line in lines] == ["4", "8", "16"] and {line["ratio"] for line in lines} == {"e2"}
    assert (work / "steps.png").read_bytes().startswith(b"\x89PNG")
    run = MlflowClient(f"sqlite:///{work}/mlflow.db")
    artifacts = {one.path for one in run.list_artifacts(run.search_runs(["1"], "tags.stage = 'report'")[0].info.run_id)}
    assert {"steps.csv", "steps.png"} <= artifacts


@pytest.mark.parametrize("kind", ["distill", "long-baseline"])
def test_a_killed_run_ends_with_the_same_losses(finished, patched_cli, cli, tmp_path, kind):
    work = tmp_path / "work"
    code = f"""
    def at(title, step):
        if title.startswith({kind!r}) and step == 7: os.kill(os.getpid(), signal.SIGKILL)
    """
    often = ("--set", "distill.training.checkpoint_every=2")  # so step 7, of the second branch, is not the first again
    process = patched_cli(code, "run", "smoke", *OPTIONS, *often, "--workdir", str(work))
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    done = cli("run", "smoke", *OPTIONS, *often, "--workdir", str(work))
    assert done.returncode == 0, done.stderr
    for name in LOSSES:
        assert (directory(work, kind) / name).read_bytes() == (directory(finished[0], kind) / name).read_bytes(), name


@pytest.mark.parametrize("of_all,known", [("[]", False), ("[4, 8]", True)])
def test_lengths_of_a_variant_are_compared_with_long_baselines_of_the_same_lengths(cli, tmp_path, of_all, known):
    """The variant takes 8 steps and the long baseline 16, so the row is compared with another one."""
    config, work = tmp_path / "own.yaml", tmp_path / "work"
    own = "{distill: {lengths: [4], training: {steps: 8}}}"
    config.write_text(f"preset: smoke\nname: own\nvariants: {{short: {own}}}\n")
    steps = ("--set", "distill.training.steps=16", "--set", f"distill.lengths={of_all}")
    done = cli("run", str(config), *OPTIONS[:4], *steps, "--workdir", str(work), "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["ratios"]
    assert [point["steps"] for point in row["lengths"]] == [4, 8]
    for point, line in zip(row["lengths"], csv.DictReader((work / "steps.csv").open()), strict=True):
        long, gain = point["long_baseline_quality"], point["student_gain_long"]
        assert point["fraction_kept"] is not None
        assert gain == (pytest.approx(point["student_quality"] - long) if known else None)
        assert point["student_gain_long_interval"] is not None if known else point["fraction_kept_long"] is None
        assert (line["long_baseline_quality"] == line["student_gain_long"] == "") != known
    assert row["student_gain_long"] != row["lengths"][1]["student_gain_long"]


def test_without_a_trained_teacher_every_length_is_compared_with_the_baseline_of_all_steps(finished, cli, tmp_path):
    teacher = next(finished[0].glob("stages/teacher-e2-*/model"))
    loaded = ("teacher.experts=[]", f"teacher.checkpoints={{e2: {teacher}}}", f"data.tokenizer={teacher}")
    options = [flag for one in loaded for flag in ("--set", one)]
    done = cli("run", "smoke", *options, *STEPS, "--workdir", str(tmp_path / "work"), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    for point in report["ratios"][0]["lengths"]:
        assert point["long_baseline_quality"] == pytest.approx(report["baseline"]["quality"])
        assert point["student_gain_long"] == pytest.approx(point["student_quality"] - report["baseline"]["quality"])
