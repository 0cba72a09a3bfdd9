"""No code in a checkpoint, a tokenizer, a data set or a config is executed."""

import ast
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from transformers import T5ForConditionalGeneration

from distill.config import ModelConfig
from distill.data.cached_labels import CachedLabels
from distill.data.corpus import read_documents
from distill.data.tokenizer import load_tokenizer
from distill.errors import UserError
from distill.io.files import file_digest, write_record
from distill.models.build import build_dense
from distill.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from pipelines.tracking.lineage import read_export_lineage
from students.export.student import load_student
from students.runtime.hf_runner import HfRunner
from teachers import load_teacher, save_teacher
from teachers.build import build_teacher
from teachers.config import TeacherConfig

ROOT = Path(__file__).parents[2]
SHAPE = ModelConfig(d_model=8, d_ff=8, d_kv=4, num_heads=2, num_layers=2)
PICKLES = ("pytorch_model.bin", "optimizer.pt", "scheduler.pt", "training_args.bin", "model.pkl", "rng_state.pth")


class Hostile:
    """An object whose unpickling creates a directory."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path):
    """A directory that exists after a hostile program has run. The fixture checks that such a program works."""
    pickle.loads(pickle.dumps(Hostile(tmp_path / "trial")))
    assert (tmp_path / "trial").exists()
    mark = tmp_path / "executed"
    yield mark
    assert not mark.exists()


@pytest.fixture
def code(mark):
    return f"import os\nos.mkdir({str(mark)!r})\n"


@pytest.fixture
def teacher(tmp_path, data):
    model = build_teacher(SHAPE, TeacherConfig(experts=[2]), data.vocab_size, 2, pad=0, eos=1, seed=0)
    save_teacher(model, tmp_path / "teacher", data.tokenizer)
    return tmp_path / "teacher"


@pytest.fixture
def dense(tmp_path, data):
    build_dense(SHAPE, data.vocab_size, pad=0, eos=1, seed=0).save_pretrained(tmp_path / "dense")
    data.tokenizer.save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


LOADERS = {"teacher": [load_teacher, load_tokenizer], "dense": [load_student, HfRunner, load_tokenizer]}


@pytest.mark.parametrize("kind", LOADERS)
def test_pickles_beside_the_weights_are_not_opened(kind, mark, request):
    directory = request.getfixturevalue(kind)
    for name in PICKLES:
        torch.save(Hostile(mark), directory / name)
    for load in LOADERS[kind]:
        load(directory)


@pytest.mark.parametrize("kind,load", [("teacher", load_teacher), ("dense", load_student), ("dense", HfRunner)])
def test_weights_that_are_a_pickle_are_refused(kind, load, mark, request):
    directory = request.getfixturevalue(kind)
    (directory / "model.safetensors").unlink()
    torch.save(Hostile(mark), directory / "pytorch_model.bin")
    with pytest.raises((UserError, OSError), match="safetensors"):
        load(directory)


@pytest.mark.parametrize("kind", LOADERS)
def test_a_pickle_under_the_name_of_safetensors_is_refused(kind, mark, request):
    directory = request.getfixturevalue(kind)
    torch.save(Hostile(mark), directory / "model.safetensors")
    with pytest.raises((UserError, SafetensorError)):
        LOADERS[kind][0](directory)


def test_pickles_of_the_hub_are_read_with_weights_only(mark, dense):
    """Old models on the hub have no other weights. The default of transformers protects against them."""
    (dense / "model.safetensors").unlink()
    torch.save({"shared.weight": Hostile(mark)}, dense / "pytorch_model.bin")
    with pytest.raises(Exception, match="(?i)weights.only"):
        T5ForConditionalGeneration.from_pretrained(dense)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_a_training_checkpoint_that_is_a_pickle_is_refused(name, mark, tmp_path):
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    path = save_checkpoint(tmp_path / "checkpoints", Progress(1), model, {})
    torch.save(Hostile(mark), path / name)
    with pytest.raises(SafetensorError):
        load_checkpoint(path, model, optimizer)


@pytest.mark.parametrize("kind", LOADERS)
def test_code_that_a_config_names_is_not_imported(kind, code, request):
    directory = request.getfixturevalue(kind)
    for name in ("evil.py", "modeling_evil.py", "tokenization_evil.py", "__init__.py", "custom_generate/generate.py"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(code + "class Evil: pass\ndef generate(*_, **__): pass\n")
    classes = ("AutoConfig", "AutoModel", "AutoModelForSeq2SeqLM")
    both = {"auto_map": {name: "evil.Evil" for name in classes} | {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        values = json.loads((directory / name).read_text()) if (directory / name).exists() else {}
        (directory / name).write_text(json.dumps({**values, **both, "trust_remote_code": True}))
    for load in LOADERS[kind]:
        load(directory)


def test_a_tokenizer_that_is_only_code_is_refused(code, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "evil.py").write_text(code + "class Evil: pass\n")
    values = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (tmp_path / "own" / "tokenizer_config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_tokenizer(tmp_path / "own")


def test_the_script_of_a_data_set_is_not_run(code, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "set.py").write_text(code)
    with pytest.raises(UserError, match="cannot be read"):
        list(read_documents(f"hf:{tmp_path / 'set'}"))


@pytest.mark.parametrize(
    "kind,problem", [("jsonl", "rows.pkl is not UTF-8 text"), ("parquet", "rows.pkl cannot be read as Parquet")]
)
def test_a_corpus_that_is_a_pickle_is_refused(kind, problem, mark, tmp_path):
    (tmp_path / "rows.pkl").write_bytes(pickle.dumps(Hostile(mark)))
    with pytest.raises(UserError, match=problem):
        list(read_documents(f"{kind}:{tmp_path}/rows.pkl"))


def labels(directory: Path, names: tuple[str, ...]) -> None:
    facts = {"examples": 1, "targets": 1, "words": 1, "vocabulary": 8, "form": "sampled"}
    sha256 = {name: file_digest(directory / name) for name in names}
    write_record(directory / "labels.json", {**facts, "sha256": sha256})


def test_cached_labels_with_objects_are_refused(mark, tmp_path):
    for name in ("words.npy", "entropy.npy"):
        np.save(tmp_path / name, np.array([Hostile(mark)], dtype=object), allow_pickle=True)
    labels(tmp_path, ("words.npy", "entropy.npy"))
    with pytest.raises(UserError, match="are not soft labels"):
        CachedLabels(tmp_path)


def test_names_in_records_do_not_lead_outside(tmp_path):
    (tmp_path / "secret").write_text("text")
    (tmp_path / "export").mkdir()
    labels(tmp_path / "export", ("../secret",))
    with pytest.raises(UserError, match="names '../secret', which is outside this directory"):
        CachedLabels(tmp_path / "export")
    (tmp_path / "export" / "lineage.json").write_text("{}")
    for name in ("../secret", str(tmp_path / "secret")):
        manifest = {"format": "hf", "files": {name: file_digest(tmp_path / "secret")}}
        (tmp_path / "export" / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(UserError, match="which is outside this directory"):
            read_export_lineage(str(tmp_path / "export"))


def test_a_store_that_cannot_be_reached_is_named_without_its_password(cli, tmp_path):
    uri = "http://me:hunter2@127.0.0.1:9"
    options = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    done = cli("lineage", "0" * 32, "--workdir", str(tmp_path / "work"), **options)
    assert done.returncode and "127.0.0.1" in done.stderr
    assert "hunter2" not in done.stderr + done.stdout and not list(tmp_path.iterdir())


SOURCES = [
    path for folder in ("distill", "teachers", "students", "pipelines") for path in (ROOT / folder).rglob("*.py")
]
PROGRAMS = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
CALLS = {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec", "os.system", "compile"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_executes_code_from_files(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            only_error = ast.unparse(node) == "from pickle import UnpicklingError"
            assert only_error or not PROGRAMS & {name.split(".")[0] for name in names}
        if not isinstance(node, ast.Call):
            continue
        call, words = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        assert call not in CALLS
        assert call != "torch.load" or words.get("weights_only") == "True"
        assert words.get("trust_remote_code", "False") == "False" and words.get("allow_pickle", "False") == "False"
        assert words.get("weights_only", "True") == "True" and words.get("shell", "False") == "False"
        if call.startswith("Auto") and call.endswith(".from_pretrained") and None not in words:
            assert "trust_remote_code" in words
