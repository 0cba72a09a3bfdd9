"""Damaged files, full disks and values that are not finite, through the command line."""

import json
import shutil
import subprocess

import pytest

from tests.damage import damage
from tests.forked import Forked


@pytest.fixture
def work(smoke, tmp_path):
    """A copy of the finished smoke run."""
    shutil.copytree(smoke[0], tmp_path / "work")
    return tmp_path / "work"


def refused(done, *parts):
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert all(part in done.stderr.splitlines()[-1] for part in parts), done.stderr


def stage(work, name):
    return next(work.glob(f"stages/{name}-*"))


@pytest.mark.parametrize(
    "command,again,file,hint",
    [
        ("init", "init-e4", "teacher-e4/model/model.safetensors", "switch-distill teacher CONFIG --ratio e4"),
        ("distill", "distill-e4", "init-e4/model/config.json", "switch-distill init CONFIG --ratio e4"),
        ("report", "report", "long-baseline/losses.json", "switch-distill baseline CONFIG"),
        ("report", "report", "teacher-e2/stage.json", "switch-distill teacher CONFIG --ratio e2"),
    ],
)
def test_a_damaged_input_is_named_with_a_hint(work, cli, command, again, file, hint):
    shutil.rmtree(stage(work, again))
    name, _, rest = file.partition("/")
    damage(stage(work, name) / rest, "bits")
    ratio = [] if command == "report" else ["--ratio", "e4"]
    done = cli(command, "smoke", *ratio, "--workdir", str(work))
    refused(done, f"{stage(work, name) / rest} is damaged", f"delete {stage(work, name)} and recompute it", hint)
    assert not list(work.glob(f"stages/{again}-*"))


def test_swapped_and_missing_losses_are_refused_and_the_cure_helps(work, cli):
    before = json.loads((work / "report.json").read_text())
    shutil.rmtree(stage(work, "report"))
    one, other = (stage(work, f"teacher-{ratio}") / "losses.json" for ratio in ("e2", "e4"))
    swapped = one.read_bytes(), other.read_bytes()
    other.write_bytes(swapped[0])
    one.write_bytes(swapped[1])
    refused(cli("report", "smoke", "--workdir", str(work)), f"{one} is damaged")
    one.write_bytes(swapped[0])
    other.unlink()
    refused(cli("report", "smoke", "--workdir", str(work)), f"{other} is missing")
    shutil.rmtree(other.parent)
    done = cli("run", "smoke", "--workdir", str(work), "--json")
    assert done.returncode == 0, done.stderr
    after = json.loads(done.stdout)
    assert [row["fraction_kept"] for row in after["ratios"]] == [row["fraction_kept"] for row in before["ratios"]]


def test_a_stage_directory_of_another_stage_is_refused(work, cli):
    one, other = stage(work, "teacher-e2"), stage(work, "teacher-e4")
    shutil.rmtree(one)
    shutil.copytree(other, one)
    refused(cli("run", "smoke", "--workdir", str(work)), "stage.json belongs to another stage (teacher e4")


def test_a_repeated_stage_removes_the_temporary_files_of_a_killed_process(work, cli):
    (stage(work, "init-e4") / "stage.json").unlink()
    left = stage(work, "init-e4") / ".model.1234"
    left.mkdir()
    (left / "model.safetensors").touch()
    done = cli("init", "smoke", "--ratio", "e4", "--workdir", str(work))
    assert done.returncode == 0 and "done in" in done.stderr, done.stderr
    assert not left.exists() and (stage(work, "init-e4") / "model" / "model.safetensors").stat().st_size


def filled(left, disk, *arguments, at=None):
    """Run the command line on a disk that is filled, except for ``left`` bytes, at a training step or at once."""
    code = f"""
import os, sys
from pipelines.cli import app as cli
from pipelines.runner import progress, runner
def fill():
    free = os.statvfs({str(disk)!r})
    with open({str(disk / "filler")!r}, "wb") as file:
        file.write(bytes(max(free.f_bavail * free.f_frsize - {left}, 0)))
update, check = progress.Bar.update, runner.check_space
def on_update(bar, step, *rest):
    update(bar, step, *rest)
    if step == {at}: fill()
def on_check(*arguments):
    check(*arguments)
    if {at} is None: fill()
progress.Bar.update, runner.check_space = on_update, on_check
cli.main()
"""
    process = Forked(code, arguments)
    stdout, stderr = process.communicate()
    return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)


@pytest.mark.parametrize(
    "at,left,path,checkpoints",
    [
        (None, 300_000, "work/mlflow.db", []),  # while its tables are created
        (10, 0, "checkpoints/step-00000016", ["step-00000008"]),
        pytest.param(*(16, 1_030_000, "work/mlflow.db", ["step-00000008", "step-00000016"]), marks=pytest.mark.slow),
    ],
)
def test_a_run_continues_when_a_full_disk_has_space_again(smoke, cli, small_disk, at, left, path, checkpoints):
    disk = small_disk(20_000_000)
    work = disk / "work"
    shutil.copytree(smoke[0] / "data", work / "data")
    arguments = ["teacher", "smoke", "--ratio", "e4", "--workdir", str(work)]
    done = filled(left, disk, *arguments, at=at)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert f"{path} cannot be written, the disk is full" in last and "free some space and run the same command" in last
    assert sorted(found.name for found in work.glob("stages/*/checkpoints/*")) == checkpoints
    (disk / "filler").unlink()
    done = cli(*arguments)
    assert done.returncode == 0, done.stderr
    whole = stage(smoke[0], "teacher-e4") / "model" / "model.safetensors"
    assert (stage(work, "teacher-e4") / "model" / "model.safetensors").read_bytes() == whole.read_bytes()


def test_space_for_the_whole_run_is_checked_at_its_start(smoke, cli, small_disk):
    disk = small_disk(6_000_000)
    shutil.copytree(smoke[0] / "data", disk / "work" / "data")
    done = cli("run", "smoke", "--workdir", str(disk / "work"))
    assert done.returncode == 1 and "of models and labels" in done.stderr and "left; free some" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and [path.name for path in (disk / "work").iterdir()] == ["data"]


def test_an_export_that_does_not_fit_leaves_nothing(smoke, cli, small_disk):
    disk = small_disk(100_000)
    options = ["--format", "hf", "--workdir", str(smoke[0]), "--output", str(disk / "e")]
    done = cli("export", "models:/smoke-student-e4/1", *options)
    assert done.returncode == 1 and "the export needs about" in done.stderr.splitlines()[-1], done.stderr
    assert not list(disk.iterdir())
