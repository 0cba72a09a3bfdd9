"""The benchmark of students of several sizes, at tiny size. Measured speeds are not tested."""

import csv

import pytest

from benchmarks import student_sizes
from benchmarks.timing import Timing
from students.load import load_dense


@pytest.fixture
def in_this_process(monkeypatch):
    """Time candidates here, because every other process would import torch again."""

    def alternate(candidates, rounds):
        for candidate in candidates:
            candidate.build(**candidate.settings)()
        seconds = [0.5, 0.25, 1.0][:rounds]
        return {candidate.name: Timing(candidate.name, seconds, candidate.work, 0) for candidate in candidates}

    monkeypatch.setattr(student_sizes, "alternate", alternate)


def test_every_student_of_a_report_is_measured(smoke, in_this_process, capsys, tmp_path):
    workdir, _ = smoke
    before = sorted(path for path in workdir.rglob("*") if path.is_file())
    student_sizes.main("smoke", workdir, rounds=3, output=tmp_path / "out.csv")
    printed = capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert [row["ratio"] for row in rows] == ["e2", "e4"] and all(name in printed for name in ("e2", "e4", "tokens/s"))
    for row in rows:
        (model,) = workdir.glob(f"stages/distill-{row['ratio']}-*/model")
        assert int(row["parameters"]) == sum(weight.numel() for weight in load_dense(str(model), "it").parameters())
        tokens = float(row["tokens"])  # 32 test examples; an answer has one or more tokens
        assert tokens >= 32 and float(row["tokens_per_second"]) == tokens / 0.5
        assert (float(row["tokens_per_second_low"]), float(row["tokens_per_second_high"])) == (tokens, tokens / 0.25)
        assert f"{int(row['parameters']):,}" in printed and f"{float(row['quality']):.3f}" in printed
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path for path in workdir.rglob("*") if path.is_file()) == before
