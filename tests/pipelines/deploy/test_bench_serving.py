"""The figures of bench-serving are computed correctly, and a small run works. Speeds are not checked."""

import importlib.util
import json
import os
import shutil
import time

import pytest
from transformers import T5ForConditionalGeneration

from distill.errors import UserError
from distill.io.files import directory_digest
from pipelines.deploy import bench_serving
from pipelines.deploy.bench_candidates import Candidate, WaveTiming, _generate


def test_prompts_are_reproducible_distinct_and_masked():
    prompts = bench_serving.make_prompts(32)
    assert prompts == bench_serving.make_prompts(32) and len(set(prompts)) == 32
    assert all(prompt.count("<extra_id_0>") == 1 and 15 < len(prompt.split()) < 25 for prompt in prompts)


def test_rates_and_latencies_summarise_all_rounds():
    waves = [WaveTiming(2.0, [1.0, 2.0], 10), WaveTiming(1.0, [0.5, 1.0], 10), WaveTiming(4.0, [4.0, 3.0], 10)]
    found = bench_serving._summary(waves)
    assert found["tokens_per_second"] == {"median": 5, "min": 2.5, "max": 10}
    assert found["requests_per_second"] == 1 and found["requests"] == 6
    assert found["latency"]["p50"] == 1.5 and found["latency"]["p99"] == pytest.approx(3.95)


def test_every_answer_has_the_requested_length(distilled):
    """All candidates do the same work, also if a model would end its answers early."""
    made = 6 * 12
    assert (
        _generate(T5ForConditionalGeneration.from_pretrained(distilled / "model").eval(), distilled / "model")(
            bench_serving.make_prompts(6), 12
        )
        == made
    )


def test_all_candidates_are_stopped_also_if_one_cannot_be(tmp_path, monkeypatch):
    stopped = []

    class Started:
        memory = 1

        def __init__(self, candidate, *_):
            self.name = candidate.name
            if self.name == "d":
                raise UserError("d cannot be measured")

        def stop(self):
            stopped.append(self.name)
            if self.name == "b":
                raise BrokenPipeError

    candidates = [Candidate(name, "runner", tmp_path) for name in "abcd"]
    monkeypatch.setattr(bench_serving, "_candidates", lambda *_: candidates)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the benchmark sets it
    monkeypatch.setattr(bench_serving, "start", Started)
    options = {"text": None, "exports": tmp_path, "workdir": tmp_path, "threads": 1, "rounds": 1, "max_tokens": 1}
    with pytest.raises((UserError, BrokenPipeError)):
        bench_serving.bench_serving("model", None, **options, say=lambda line: None)
    assert sorted(stopped) == ["a", "b", "c"]


class Reusable:
    """A model that no store knows, and ``exports/hf-float32`` of it, of which ``reuse`` makes candidates."""

    def __init__(self, root):
        self.model, self.exports = root / "mine", root / "exports"
        self.export = self.exports / "hf-float32"
        self.model.mkdir()
        (self.model / "config.json").write_text("{}")
        self.export.mkdir(parents=True)
        self.write()

    def write(self, *, format="hf", precision="float32", **student):
        made = {"model": "mine", "sha256": directory_digest(self.model), **student}
        (self.export / "manifest.json").write_text(json.dumps({"format": format, "precision": precision}))
        (self.export / "lineage.json").write_text(json.dumps({"inputs": [made]}))

    def reuse(self):
        said = []
        bench_serving._candidates(str(self.model), None, "*.txt", self.exports, self.exports, said.append)
        return said


@pytest.fixture
def reusable(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_serving, "FORMATS", dict.fromkeys(("hf", "onnx", "ctranslate2"), (None, None, ())))
    monkeypatch.setitem(bench_serving.FORMATS, "hf", (None, None, ("float32",)))
    return Reusable(tmp_path)


def test_an_export_of_the_same_student_is_reused(reusable):
    assert reusable.reuse() == [f"{reusable.export}: reused"]


@pytest.mark.parametrize(
    "written,says",
    [
        ({"sha256": "0" * 32, "model": "other"}, r"is made from other \(weights 000000000000\), not from "),
        ({"sha256": None}, "is made from mine .weights unknown., not from "),
        ({"format": "onnx"}, "is an export in onnx float32, not in hf float32"),
        ({"precision": "int8"}, "is an export in hf int8, not in hf float32"),
    ],
)
def test_an_export_of_another_student_or_precision_is_refused(reusable, written, says):
    reusable.write(**written)
    with pytest.raises(UserError, match=f"hf-float32 in --exports {says}.*; delete it, or choose another --exports$"):
        reusable.reuse()


def test_an_export_of_unknown_origin_is_refused(reusable):
    (reusable.export / "lineage.json").unlink()
    with pytest.raises(UserError, match=r"is made from an unknown student, not from .*; delete it"):
        reusable.reuse()


def test_the_check_of_exports_leaves_the_store_of_other_processes(reusable, monkeypatch):
    """Opening a store makes mlflow set the variable, which the processes that export would read."""
    real = bench_serving.find_source

    def find(*arguments):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///opened.db")
        return real(*arguments)

    monkeypatch.setattr(bench_serving, "find_source", find)
    monkeypatch.setattr(bench_serving, "ASKED_FOR", None)
    reusable.reuse()
    assert "MLFLOW_TRACKING_URI" not in os.environ


@pytest.mark.parametrize("below", ["", "below"])
def test_exports_that_are_a_file_are_an_error(tmp_path, below):
    (tmp_path / "file").write_text("text")
    options = {"text": None, "workdir": tmp_path, "threads": 1, "rounds": 1, "max_tokens": 1}
    with pytest.raises(UserError, match=r"file is a file; name a directory|file cannot be written to"):
        bench_serving.bench_serving("m", None, exports=tmp_path / "file" / below, **options, say=lambda line: None)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="onnxruntime is not installed")
def test_a_run_measures_every_candidate_and_keeps_its_exports(export, distilled, exporting, tmp_path, monkeypatch):
    for kind in (("hf", "float32"), ("onnx", "float32")):
        shutil.copytree(export(*kind), tmp_path / "-".join(kind))
    formats = {"hf": (None, None, ("float32",)), "onnx": (None, None, ("float32",)), "ctranslate2": (None, None, ())}
    monkeypatch.setattr(bench_serving, "FORMATS", formats)
    monkeypatch.setattr(bench_serving, "CONCURRENCY", {1: 1, 8: 1})
    said, began = [], time.perf_counter()
    result = bench_serving.bench_serving(
        str(distilled),
        next((exporting / "stages").glob("teacher-e4-*")) / "model",
        text=None,
        exports=tmp_path,
        workdir=exporting,
        threads=1,
        rounds=2,
        max_tokens=4,
        say=said.append,
    )
    elapsed = time.perf_counter() - began
    candidates = {candidate["name"]: candidate for candidate in result["arms"]}
    assert list(candidates) == [
        "transformers float32",
        "transformers bfloat16",
        "onnx float32",
        "serve, onnx float32",
        "serve, onnx float32, without batching",
        "Switch teacher, transformers float32",
    ]
    for candidate in candidates.values():
        assert (
            0 < candidate["start_seconds"] < elapsed
            and candidate["memory_bytes"] > 2e7
            and candidate["disk_bytes"] > 1e5
        )
        assert candidate["concurrency"]["8"]["requests"] == 16
        for one in candidate["concurrency"].values():
            latency = one["latency"]
            assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"] < elapsed
            assert one["tokens_per_second"]["median"] > 0
    assert (
        candidates["onnx float32"]["memory_bytes"] < 0.7 * candidates["transformers float32"]["memory_bytes"]
    )  # no torch in it
    assert abs(candidates["onnx float32"]["quality_difference"]) < 1e-4
    lines = bench_serving.markdown_table(result).splitlines()
    assert len(lines) == 2 + len(candidates) and len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| transformers float32 |") and "| 1.00 x |" in lines[2]
    assert sum("reused" in line for line in said) == 2 and "round 2 of 2" in said


def test_a_model_that_cannot_be_exported_is_an_error(tmp_path, cli):
    done = cli("bench-serving", "models:/nobody/1", "--workdir", str(tmp_path))
    assert done.returncode == 2 and "holds no MLflow store" in done.stderr and "Traceback" not in done.stderr
