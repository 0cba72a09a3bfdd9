"""The figures of bench-serving are computed correctly, and a small run works. Speeds are not checked."""

import importlib.util
import shutil
import time

import pytest
from transformers import T5ForConditionalGeneration

from distill.errors import UserError
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
