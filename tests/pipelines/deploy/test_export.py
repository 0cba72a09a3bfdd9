"""``switch-distill export`` of the smoke preset's students and of a directory that no store knows."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from transformers import T5ForConditionalGeneration

from distill.errors import UserError
from pipelines.deploy.export import export_student
from pipelines.tracking.lineage import read_export_lineage
from students.export import FORMATS, parity, write_export
from tests.processor import multiplies_int8

ROOT = Path(__file__).parents[3]
EXTRAS = {"onnx": "onnxscript", "ctranslate2": "ctranslate2"}


@pytest.fixture(scope="module")
def client(exporting):
    return MlflowClient(f"sqlite:///{exporting}/mlflow.db")


@pytest.fixture(scope="module")
def row(exporting):
    return json.loads((exporting / "report.json").read_text())["ratios"][0]


# tests/students/export tests the answers of the other formats, without a pipeline.
COMMAND_FORMATS = [name if name in ("hf", "onnx") else pytest.param(name, marks=pytest.mark.slow) for name in FORMATS]


@pytest.fixture(scope="module", params=COMMAND_FORMATS)
def exported(request, export):
    """Format -> directory and manifest of its export."""
    format = request.param
    if format in EXTRAS:
        pytest.importorskip(EXTRAS[format], reason=f"the extra {format} is not installed")
    output = export(format, "float32")
    return output, json.loads(output.with_name("export.json").read_text())


def test_the_manifest_describes_the_runtime_and_all_files_are_readable(exported):
    output, manifest = exported
    assert json.loads((output / "manifest.json").read_text()) == manifest
    assert manifest["format"] == output.name and manifest["compute_type"] == "float32"
    runtime = {"hf": "transformers", "onnx": "onnxruntime"}.get(output.name, output.name)
    assert runtime in manifest["versions"]
    assert ("torch" in manifest["versions"]) == (output.name in ("hf", "mlflow"))
    assert manifest["processor"]["machine"] and manifest["parity"]["tokens"] > 500
    files = {str(path.relative_to(output)): path for path in output.rglob("*") if path.is_file()}
    assert manifest["files"].keys() == files.keys() - {"manifest.json"}
    for name, path in files.items():
        assert path.stat().st_mode & 0o777 == 0o644
        assert name == "manifest.json" or manifest["files"][name] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_card_has_the_figures_of_the_report_and_its_code_runs(exported, row):
    output, manifest = exported
    card = (output / "model_card.md").read_text()
    assert row["student_run_id"] in card and row["teacher_run_id"] in card and "nats" in card
    assert f"{row['compression']:.1%} fewer parameters" in card
    assert ", ".join(f"{name} {version}" for name, version in manifest["versions"].items()) in card
    assert ("a reader of config.json and model.safetensors" in card) == (output.name == "hf")
    known = row["fraction_kept"] is not None
    assert (
        f"{row['fraction_kept']:.1%} (95 % interval of 32 documents and 1 seed: [" if known else "undefined"
    ) in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"],
        cwd=output,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


def test_the_lineage_leads_from_the_directory_to_the_data(exported, cli, client, row):
    output, manifest = exported
    tree = json.loads(cli("lineage", str(output), "--json", "--workdir", "nowhere").stdout)
    student = tree["inputs"][0]
    assert tree["stage"] == "export" and student["run_id"] == row["student_run_id"]
    upstream = student
    while upstream["inputs"]:
        upstream = upstream["inputs"][-1]
    assert upstream["stage"] == "teacher" and upstream["run_id"] == row["teacher_run_id"]
    assert {entry["context"] for entry in upstream["datasets"]} == {"train", "test"}
    run = client.get_run(tree["run_id"])  # MLflow has the same records
    assert [entry.model_id for entry in run.inputs.model_inputs] == [student["model_id"]]
    assert [entry.model_id for entry in run.outputs.model_outputs] == [tree["model_id"]]
    assert run.info.status == "FINISHED" and run.data.params["format"] == output.name
    for name in ("quality_difference", "greedy_agreement", "log_probability_difference_max"):
        assert run.data.metrics[name] == pytest.approx(manifest["parity"][name], abs=1e-6)
    assert client.get_logged_model(tree["model_id"]).tags["directory"] == str(output)


def test_the_registry_has_the_figures_and_the_champion(client, exporting):
    report = json.loads((exporting / "report.json").read_text())
    best = max(report["ratios"], key=lambda row: row["student_quality"])
    if best["student_quality"] <= report["baseline"]["quality"]:
        best = None
    for row in report["ratios"]:
        name, version = row["student_model_uri"].removeprefix("models:/").split("/")
        tags = client.get_model_version(name, version).tags
        assert float(tags["quality"]) == pytest.approx(row["student_quality"], abs=1e-4)
        assert float(tags["compression"]) == pytest.approx(row["compression"], abs=1e-4)
        fraction = row["fraction_kept"]
        assert tags["fraction_kept"] == ("undefined" if fraction is None else f"{fraction:.4f}")
        assert list(client.get_registered_model(name).aliases) == (["champion"] if row is best else [])
        assert row is not best or str(client.get_model_version_by_alias(name, "champion").version) == version


def test_the_models_of_all_stages_have_names_that_transformers_4_knows(exporting):
    models = list(exporting.glob("stages/*/model"))
    assert {path.parent.name.split("-")[0] for path in models} == {"teacher", "init", "distill", "baseline", "long"}
    for model in models:
        tokenizer = json.loads((model / "tokenizer_config.json").read_text())
        assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert tokenizer["additional_special_tokens"] and "extra_special_tokens" not in tokenizer


@pytest.fixture
def altered(monkeypatch):
    """Make an export with slightly different weights."""

    def write(source, directory, format, precision):
        model = T5ForConditionalGeneration.from_pretrained(source)
        model.decoder.final_layer_norm.weight.data *= 1.05
        model.save_pretrained(directory)
        shutil.copyfile(source / "tokenizer.json", directory / "tokenizer.json")

    monkeypatch.setattr("pipelines.deploy.export.write_export", write)


def test_an_export_that_differs_fails_with_the_difference_and_leaves_nothing(altered, exporting, row, client, tmp_path):
    with pytest.raises(parity.ParityFailure, match=r"difference of log-probabilities \S+ nats \(allowed 2e-05\)"):
        export_student("models:/smoke-student-e2/1", tmp_path / "made", format="hf", workdir=exporting)
    assert not list(tmp_path.iterdir())
    experiment = client.get_run(row["student_run_id"]).info.experiment_id
    [run] = client.search_runs([experiment], "tags.stage = 'export' and attributes.status = 'FAILED'")
    assert run.data.metrics["log_probability_difference_mean"] > 2e-5


@pytest.mark.slow  # test_plain_t5 tests the second reader without a pipeline
def test_files_that_only_transformers_5_reads_as_the_student_are_refused(
    gated_student, text_files, tmp_path, monkeypatch
):
    """The export's own runtime gives the student's answers, with a key that no other reader knows."""

    def write(source, directory, format, precision):
        write_export(source, directory, format, precision)
        config = json.loads((directory / "config.json").read_text())
        assert config["tie_word_embeddings"] is config["scale_decoder_outputs"] is False
        (directory / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))

    def made():
        text = text_files.removeprefix("text:")
        return export_student(
            str(gated_student), tmp_path / "made", format="hf", workdir=tmp_path / "nowhere", text=text
        )

    with monkeypatch.context() as patched:
        patched.setattr("pipelines.deploy.export.write_export", write)
        message = (
            r"only transformers 5\S+ reads .*; use --format onnx or ctranslate2. Another reader differs: mean diff"
        )
        with pytest.raises(parity.ParityFailure, match=message):
            made()
    assert not list(tmp_path.iterdir())
    manifest = made()
    assert manifest["parity_of_plain_t5"]["log_probability_difference_max"] < 1e-4


@pytest.mark.slow
def test_a_directory_that_no_store_knows_is_verified_on_given_text(student, text_files, tmp_path):
    output = tmp_path / "made"
    pattern = text_files.removeprefix("text:")
    manifest = export_student(str(student), output, format="hf", workdir=tmp_path / "nowhere", text=pattern)
    assert manifest["parity"]["greedy_agreement"] == 1
    assert not (tmp_path / "nowhere").exists()
    tree = read_export_lineage(str(output))
    assert tree["run_id"] is None and tree["inputs"][0]["model"] == student.name
    (output / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config.json is damaged: .*; export the model again"):
        read_export_lineage(str(output))


def test_an_hf_export_is_a_model_to_export_again(export, exporting, tmp_path):
    pytest.importorskip("ctranslate2", reason="the extra ctranslate2 is not installed")
    first = str(export("hf", "float32"))
    precision, suffix = ("int8", "-int8") if multiplies_int8() else ("float32", "")
    export_student(first, tmp_path / "second", format="ctranslate2", precision=precision, workdir=exporting)
    tree = read_export_lineage(str(tmp_path / "second"))
    assert tree["model"] == f"student-e2-hf-ctranslate2{suffix}"
    assert [tree["stage"], tree["inputs"][0]["stage"], tree["inputs"][0]["inputs"][0]["stage"]] == [
        "export",
        "export",
        "distill",
    ]


def test_wrong_input_gives_one_sentence(cli, exporting, row, student, tmp_path):
    def complaint(model, *options):
        done = cli("export", model, "--output", str(tmp_path / "made"), "--workdir", str(exporting), *options)
        assert done.returncode == 2 and "Traceback" not in done.stderr and not (tmp_path / "made").exists()
        return done.stderr

    assert "--format is 'gguf'; use hf, onnx" in complaint(row["student_model_uri"], "--format", "gguf")
    assert "but hf has float32" in complaint(row["student_model_uri"], "--format", "hf", "--precision", "int8")
    assert "is not in the store" in complaint("models:/nobody/1", "--format", "hf")
    assert "give text with --text FILES" in complaint(str(student), "--format", "hf")
    teacher = complaint(row["teacher_run_id"], "--format", "hf")
    assert "is a switch_transformers model; a dense T5 is needed" in teacher


def test_an_existing_output_is_not_changed(exporting, tmp_path):
    (tmp_path / "mine").write_text("text")
    with pytest.raises(UserError, match="exists already; remove it, or choose another directory"):
        export_student("models:/smoke-student-e2/1", tmp_path, format="hf", workdir=exporting)
    assert (tmp_path / "mine").read_text() == "text"


def test_missing_held_out_text_is_an_error(smoke, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(smoke[0], copy)
    shutil.rmtree(copy / "data")
    with pytest.raises(UserError, match=r"the held-out text of student-e2 \(digest [0-9a-f]{32}\) is not in"):
        export_student("models:/smoke-student-e2/1", tmp_path / "made", format="hf", workdir=copy)
