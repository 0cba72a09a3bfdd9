"""The benchmark of a GPU at its small sizes, on a CPU. Measured speeds are not tested."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer

from benchmarks import gpu, gpu_checks
from benchmarks.gpu_parts import Case
from teachers.switch_layer import SwitchLayer

SCRIPT = Path(gpu.__file__)


def test_all_parts_run_at_small_sizes(tmp_path):
    output = tmp_path / "new" / "gpu.json"
    command = [sys.executable, str(SCRIPT), "--tiny", "--output", str(output)]
    without_gpu = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(command, cwd=tmp_path, env=without_gpu, check=True, capture_output=True, text=True)
    printed = run.stdout
    found = json.loads(output.read_text())
    assert found.keys() == {"machine", "sizes", "checks", "timings", "seconds"}
    assert found["machine"]["torch"] == torch.__version__
    for check in found["checks"]:
        assert check.keys() == {"name", "precision", "tolerance", "difference", "tensor", "passed"}
        assert check["passed"]
        # bfloat16 rounds; in float32, the CPU agrees with itself
        assert (check["difference"] > 1e-4) == (check["precision"] == "bfloat16")
    for row in found["timings"]:
        assert row["note"] == "" and row["seconds"]["min"] <= row["seconds"]["median"] <= row["seconds"]["max"]
        assert row["rate"] > 0 and row["repeats"] == 2 and row["part"].partition(",")[0] in printed
    names = {row["case"] for row in found["timings"]}
    assert names >= {"online soft labels", "cached soft labels", "plain loop, bfloat16 autocast", "dense FFN"}
    assert {row["peak_bytes"] for row in found["timings"]} == {None} and "FAILED" not in printed


def wrong_output(forward):
    def changed(self, hidden, padding_mask=None):
        output, statistics = forward(self, hidden, padding_mask)
        # Only the bfloat16 form is wrong, as on a device whose grouped product is.
        return (output * 1.1 if torch.is_autocast_enabled("cpu") else output), statistics

    return changed


def test_a_wrong_layer_fails(monkeypatch):
    monkeypatch.setattr(SwitchLayer, "forward", wrong_output(SwitchLayer.forward))
    found = list(gpu_checks.checks(torch.device("cpu")))
    failed = {check.name for check in found if not check.passed}
    assert {check.precision for check in found if not check.passed} == {"bfloat16"}
    assert {name for name in failed if name.startswith("Switch layer")} and not failed & {"student"}
    wrong = [check for check in found if check.name.startswith("Switch layer") and not check.passed]
    assert len(wrong) == 2 and all(check.difference == pytest.approx(0.1, abs=0.02) for check in wrong)


def test_a_result_that_is_not_finite_fails(monkeypatch):
    outputs = iter([torch.ones(2), torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("inf")])])
    monkeypatch.setattr(gpu_checks, "_CHECKS", {"layer": (lambda device, autocast: {"y": next(outputs)}, 0.1)})
    found = list(gpu_checks.checks(torch.device("cpu")))
    assert [check.difference for check in found] == [None, None] and not any(check.passed for check in found)


def test_without_a_gpu_only_the_small_sizes_run(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(typer.Exit) as ended:
        gpu.main(tiny=False, output=tmp_path / "gpu.json")
    assert ended.value.exit_code == 2 and not list(tmp_path.iterdir())
    assert capsys.readouterr().err == "There is no CUDA device; run this on a machine with a GPU, or add --tiny.\n"


def failing(error):
    def build():
        raise error

    return build


def test_a_part_that_fails_does_not_stop_the_others(monkeypatch, tmp_path, capsys):
    parts = [
        Case("memory", "first", failing(torch.OutOfMemoryError("no memory")), "tokens", 1.0),
        Case("error", "first", failing(ValueError("no kernel")), "tokens", 1.0),
        Case("good", "first", lambda: lambda: None, "tokens", 1.0, operations=1.0),
    ]
    monkeypatch.setattr(gpu, "cases", lambda sizes, device: parts)
    monkeypatch.setattr(gpu, "checks", lambda device: iter(()))
    with pytest.raises(typer.Exit) as ended:
        gpu.main(tiny=True, output=tmp_path / "gpu.json")
    assert ended.value.exit_code == 1
    rows = json.loads((tmp_path / "gpu.json").read_text())["timings"]
    assert [row["note"] for row in rows] == ["out of memory", "failed: ValueError: no kernel", ""]
    assert rows[0].keys() == rows[2].keys() and rows[2]["mfu"] == "unknown"

    monkeypatch.setattr(gpu, "_LIMIT", -1.0)
    gpu.main(tiny=True, output=tmp_path / "gpu.json")  # nothing has failed
    rows = json.loads((tmp_path / "gpu.json").read_text())["timings"]
    assert {row["note"] for row in rows} == {"skipped: no time left"}
