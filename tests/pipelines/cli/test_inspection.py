"""``inspect``: what the headers of a Switch model say, against the model in memory."""

import json
import operator
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.filesize import decimal
from safetensors.torch import load_file, save_file
from transformers import SwitchTransformersForConditionalGeneration

from benchmarks.checkpoints import Size, write_checkpoint
from benchmarks.public_shapes import Public, write_holes
from distill.config import ModelConfig
from distill.models.build import count_parameters
from pipelines.cli.inspection import model_facts, show_model
from students import init_student
from teachers.build import build_teacher
from teachers.config import SwitchConfig
from teachers.save import save_teacher
from tests.hub import Hub, python
from tests.teachers.plain_teacher import save_plain_teacher

ROOT = Path(__file__).parents[3]
NAME = "some/switch"
_SHOW = "import sys; from pipelines.cli.inspection import show_model; show_model(sys.argv[1], json_=len(sys.argv) > 2)"
_FETCH = "import sys; from distill.models.directory import fetch_weights; fetch_weights(sys.argv[1], 'it')"
# Fails if the command has imported a library whose import takes seconds.
_QUICK = """
import sys
from pipelines.cli.app import main
try:
    main()
finally:
    assert not {"torch", "transformers", "scipy", "mlflow"} & set(sys.modules)
"""


@pytest.mark.parametrize("tied", [True, False])
def test_layout_and_parameters_are_those_of_the_model(tmp_path, tied):
    model = save_plain_teacher(tmp_path, tie_word_embeddings=tied)
    facts, own = model_facts(str(tmp_path)), dict(model.named_parameters())
    experts = {name: one.numel() for name, one in own.items() if ".experts." in name}
    layout, parameters = facts["layout"], facts["parameters"]
    assert layout["encoder"] == layout["decoder"] == {"blocks": 4, "sparse": [1, 3]}
    assert (layout["num_experts"], layout["d_model"], layout["d_ff"], layout["vocab_size"]) == (4, 16, 32, 64)
    assert (layout["num_heads"], layout["d_kv"], layout["gated"], layout["tied"]) == (2, 8, False, tied)
    assert parameters["all"] == count_parameters(model) == sum(parameters["per_layer"].values())
    assert parameters["non_expert"] == count_parameters(model) - sum(experts.values())
    assert parameters["per_expert"] == sum(size for name, size in experts.items() if "encoder.block.1." in name) / 4
    block = {name: one.numel() for name, one in own.items() if name.startswith("decoder.block.3.")}
    assert parameters["per_layer"]["decoder.block.3"] == sum(block.values())
    student = count_parameters(init_student(str(tmp_path)))
    assert facts["student"]["parameters"] == student
    assert facts["student"]["compression"] == pytest.approx(1 - student / count_parameters(model))
    assert facts["differences"] == [] and facts["commit"] is None


def test_a_gated_model_is_described_too(tmp_path):
    shape = ModelConfig(d_model=16, d_ff=32, d_kv=8, num_heads=2, num_layers=2, feed_forward="gated-gelu")
    teacher = build_teacher(shape, SwitchConfig(), 64, 4, pad=0, eos=1, seed=0)
    save_teacher(teacher, tmp_path)
    facts = model_facts(str(tmp_path))
    assert facts["layout"]["gated"] and facts["layout"]["activation"] == "gated-gelu"
    assert facts["parameters"]["all"] == count_parameters(teacher)
    assert facts["parameters"]["per_expert"] == 3 * 16 * 32
    assert facts["student"]["parameters"] == count_parameters(init_student(teacher))


@pytest.mark.parametrize("pickled", [False, True])
def test_files_and_dtypes_are_those_on_disk(tmp_path, pickled):
    save_plain_teacher(tmp_path)
    path = tmp_path / "model.safetensors"
    values = {name: one if "router" in name else one.bfloat16() for name, one in load_file(path).items()}
    save_file(values, path, metadata={"format": "pt"})
    if pickled:
        path.unlink()
        path = tmp_path / "pytorch_model.bin"
        torch.save(values, path)
    facts = model_facts(str(tmp_path))
    assert facts["files"] == [{"name": path.name, "bytes": path.stat().st_size, "tensors": len(values)}]
    nbytes = operator.attrgetter("nbytes")
    routers = [one for name, one in values.items() if "router" in name]
    assert facts["dtypes"]["float32"] == {
        "tensors": 4,
        "values": 4 * 4 * 16,
        "bytes": sum(one.nbytes for one in routers),
    }
    assert facts["dtypes"]["bfloat16"]["tensors"] == len(values) - 4
    assert sum(one["bytes"] for one in facts["dtypes"].values()) == sum(map(nbytes, values.values()))
    read = sum(one.nbytes for name, one in values.items() if ".experts." not in name)
    assert facts["init"] == {"reads": read, "fetches": 0}
    if not pickled:
        assert (
            count_parameters(SwitchTransformersForConditionalGeneration.from_pretrained(tmp_path))
            == (facts["parameters"]["all"])
        )


def test_embeddings_with_one_storage_count_once(tmp_path):
    model = save_plain_teacher(tmp_path, tie_word_embeddings=False)
    (tmp_path / "model.safetensors").unlink()
    state = model.state_dict()
    state["encoder.embed_tokens.weight"] = state["shared.weight"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert model_facts(str(tmp_path))["parameters"]["all"] == count_parameters(model) - 64 * 16


def test_a_config_that_contradicts_the_tensors_is_told(tmp_path, capsys):
    save_plain_teacher(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_decoder_layers": 3}))
    show_model(str(tmp_path), json_=False)
    said = " ".join(capsys.readouterr().out.split())
    sentence = "its config.json has num_decoder_layers 3, but its tensors have 4; the tensors are used"
    assert sentence in said and sentence in model_facts(str(tmp_path))["differences"]


def test_json_is_all_on_stdout_and_the_text_says_the_same(tmp_path, cli):
    directory = tmp_path / "[bold]model"  # no markup
    save_plain_teacher(directory)
    as_json, as_text = cli("inspect", str(directory), "--json"), cli("inspect", str(directory))
    assert (as_json.returncode, as_json.stderr, as_text.returncode, as_text.stderr) == (0, "", 0, "")
    facts, text = json.loads(as_json.stdout), " ".join(as_text.stdout.split())
    assert facts["model"] == str(directory) and str(directory) in "".join(as_text.stdout.split())
    assert "4 blocks, sparse: 1, 3" in text and "model.safetensors: 151.1 kB, 117 tensors" in text
    assert f"{facts['student']['parameters']:,} parameters, {facts['student']['compression']:.1%} fewer" in text
    for stage in ("teacher", "init", "label", "distill", "baseline"):
        assert re.search(rf" {stage} [\d.]+ \wB in memory", text)


def test_many_tensors_take_under_three_seconds_and_no_torch(tmp_path):
    write_holes(tmp_path / "model", Public(experts=410, d_model=8, d_ff=8, blocks=12, heads=2))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _QUICK, "inspect", str(tmp_path / "model"), "--json"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (done.returncode, done.stderr) == (0, "")
    assert sum(file["tensors"] for file in json.loads(done.stdout)["files"]) > 10_000
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3


def facts_of(hub: Hub, source: str = NAME, **environment: str) -> dict:
    return json.loads(python(_SHOW, source, "json", **{**hub.environment, **environment}))


def test_of_a_model_on_the_hub_only_headers_are_fetched(hub, tmp_path):
    write_checkpoint(tmp_path / "model", Size(d_model=128, d_ff=512, experts=8, blocks=2, vocabulary=512))
    commit = hub.model(NAME).commit(tmp_path / "model")
    facts, local = facts_of(hub), model_facts(str(tmp_path / "model"))
    weights = [name for name in hub.sent if name.endswith(".safetensors")]
    assert facts["commit"] == commit and sum(hub.sent[name] for name in weights) < facts["bytes"] / 3
    assert all(facts[key] == local[key] for key in ("layout", "dtypes", "parameters", "bytes", "files", "student"))
    assert {stage: needs["fetch"] for stage, needs in facts["stages"].items() if needs["fetch"]} == {
        "teacher": local["bytes"]
    }
    reads, fetches = facts["init"]["reads"], facts["init"]["fetches"]
    assert reads == local["init"]["reads"] and 0 < fetches < reads  # the start of each file is here already
    text = " ".join(python(_SHOW, NAME, **hub.environment).split())
    assert f"{NAME} at {commit[:12]}" in text and f"without a teacher stage, it fetches {decimal(fetches)}" in text
    assert re.search(rf" teacher [\d.]+ \wB in memory 0 bytes {decimal(local['bytes'])}", text)
    sent = dict(hub.sent)
    python(f"from students import init_student; init_student({NAME!r})", **hub.environment)
    assert sum(hub.sent[name] - sent[name] for name in weights) == fetches
    hub.close()
    again = facts_of(hub, f"{NAME}@{commit}", HF_HUB_OFFLINE="1")
    assert again["init"]["fetches"] == 0 and again["parameters"] == local["parameters"]


def test_a_model_in_the_cache_is_read_there(hub, tmp_path):
    save_plain_teacher(tmp_path / "model")
    commit = hub.model(NAME).commit(tmp_path / "model")
    python(_FETCH, NAME, **hub.environment)
    hub.close()
    facts = facts_of(hub, f"{NAME}@{commit}", HF_HUB_OFFLINE="1")
    assert facts["commit"] == commit and facts["parameters"] == model_facts(str(tmp_path / "model"))["parameters"]
    assert facts["init"]["fetches"] == facts["stages"]["teacher"]["fetch"] == 0
