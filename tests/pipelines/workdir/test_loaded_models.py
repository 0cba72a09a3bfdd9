"""Models that a run loads are compared before it starts. ``wrong_inputs.txt`` lists models that are refused."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

from distill.data.prepared_data import PreparedData
from distill.errors import UserError
from distill.models.build import build_dense
from pipelines.config.run_config import RunConfig, load_config
from pipelines.workdir.loaded_models import check_models, check_tokenizers
from pipelines.workdir.plan import plan
from pipelines.workdir.workspace import Workspace
from students import init_student
from students.check import check_dense
from teachers import save_teacher
from teachers.build import build_teacher
from teachers.check import check_teacher
from teachers.config import TeacherConfig
from tests.hub import new_python

SIZES = {"vocab_size": 64, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_heads": 2, "num_layers": 2, "num_experts": 2}
_CHECK = """
import sys
from distill.errors import UserError
from pipelines.config.run_config import load_config
from pipelines.workdir.loaded_models import check_models
try:
    models = check_models(load_config(sys.argv[1], sys.argv[2:]))
    print([len(model.vocabulary or ()) for model in models])
except UserError as error:
    print(error)
print("transformers" in sys.modules)
"""


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": False},
        {"num_layers": 3, "num_decoder_layers": 2, "relative_attention_max_distance": 50},
        {"num_layers": 4, "num_decoder_layers": None, "relative_attention_num_buckets": 16},
        {"dense_act_fn": "gelu_new", "vocab_size": 80},
        {"dense_act_fn": "silu", "d_ff": 40},
    ],
)
def test_the_header_of_a_teacher_gives_the_shape_of_its_student(tmp_path, changes):
    values = {**SIZES, "num_decoder_layers": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}
    config = SwitchTransformersConfig(**{**values, **changes})
    SwitchTransformersForConditionalGeneration(config).save_pretrained(tmp_path / "teacher")
    init_student(tmp_path / "teacher").save_pretrained(tmp_path / "student")
    assert check_teacher(str(tmp_path / "teacher")).shape == check_dense(str(tmp_path / "student"), "it").shape


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("feed_forward", ["relu", "gelu", "gated-gelu"])
def test_the_header_of_a_trained_teacher_gives_the_shape_of_its_student(tmp_path, shape, feed_forward, tied):
    shape = shape.model_copy(update={"feed_forward": feed_forward, "tie_word_embeddings": tied})
    save_teacher(build_teacher(shape, TeacherConfig(experts=[2]), 64, 2, pad=0, eos=1, seed=0), tmp_path / "teacher")
    init_student(tmp_path / "teacher").save_pretrained(tmp_path / "student")
    build_dense(shape, 64, pad=0, eos=1, seed=0).save_pretrained(tmp_path / "baseline")
    found = check_teacher(str(tmp_path / "teacher")).shape
    assert found == check_dense(str(tmp_path / "student"), "it").shape
    assert found == check_dense(str(tmp_path / "baseline"), "it").shape


@pytest.fixture
def loading(data_config, data: PreparedData, shape, tmp_path) -> Path:
    """A config that loads a teacher, a baseline and a tokenizer from directories. All have the same vocabulary."""
    save_teacher(
        build_teacher(shape, TeacherConfig(experts=[2]), 512, 2, pad=0, eos=1, seed=0),
        tmp_path / "teacher",
        data.tokenizer,
    )
    build_dense(shape, 512, pad=0, eos=1, seed=0).save_pretrained(tmp_path / "baseline")
    for name in ("baseline", "tokenizer"):
        data.tokenizer.save_pretrained(tmp_path / name)
    training = {"steps": 2, "batch_size": 4, "warmup_steps": 1}
    config = {
        "data": {**data_config.model_dump(mode="json"), "tokenizer": str(tmp_path / "tokenizer")},
        "teacher": {"checkpoints": {"e2": str(tmp_path / "teacher")}},
        "baseline": {"checkpoint": str(tmp_path / "baseline")},
        "distill": {"training": training},
    }
    path = tmp_path / "loading.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def swap(directory: Path, one: str = "a", other: str = "b") -> None:
    """Swap two tokens of a tokenizer."""
    path = directory / "tokenizer.json"
    values = json.loads(path.read_text())
    ids = values["model"]["vocab"]
    ids[one], ids[other] = ids[other], ids[one]
    path.write_text(json.dumps(values))


def pad_embedding(directory: Path, rows: int) -> None:
    """Give the embedding of a model more rows than the tokenizer has tokens."""
    config = json.loads((directory / "config.json").read_text())
    state = load_file(directory / "model.safetensors")
    weight = state["shared.weight"]
    state["shared.weight"] = weight.new_zeros(rows, weight.shape[1])
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))


def check(path: Path, data: PreparedData, *overrides: str) -> None:
    config = load_config(str(path), overrides)
    check_tokenizers(config, data, check_models(config))


def test_models_of_one_vocabulary_are_accepted_with_any_padding(loading, data):
    check(loading, data)
    for name in ("teacher", "baseline"):
        pad_embedding(loading.parent / name, 640)
    check(loading, data)


def test_a_model_without_a_tokenizer_is_compared_by_size_alone(loading, data):
    (loading.parent / "teacher" / "tokenizer.json").unlink()
    swap(loading.parent / "tokenizer")
    (loading.parent / "baseline" / "tokenizer.json").unlink()
    check(loading, data)


def test_a_trained_tokenizer_is_compared_with_the_baselines_own(loading, data):
    """After the data is prepared, because its vocabulary is not known before."""
    config = RunConfig.model_validate(
        {
            **load_config(str(loading)).model_dump(),
            "data": {**load_config(str(loading)).data.model_dump(), "tokenizer": "train"},
            "model": {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_heads": 2, "num_layers": 2},
            "teacher": {"experts": [2], "training": {"steps": 2, "batch_size": 4, "warmup_steps": 1}},
        }
    )
    check_tokenizers(config, data, check_models(config))
    swap(loading.parent / "baseline")
    models = check_models(config)
    with pytest.raises(
        UserError, match=r"^baseline.checkpoint .* and data.tokenizer 'train' have different tokenizers"
    ):
        check_tokenizers(config, data, models)


def test_vocabularies_are_compared_with_prepared_data(loading, tmp_path, data):
    """Also for a model whose stage is finished, because the report reads its losses."""
    workdir, console = tmp_path / "work", Console(quiet=True)
    Workspace(load_config(str(loading)), str(loading), workdir, console)
    swap(loading.parent / "teacher")
    with pytest.raises(UserError, match="different tokenizers: 2 of 512 tokens differ"):
        Workspace(load_config(str(loading)), str(loading), workdir, console)
    assert not (workdir / "stages").exists()


def test_no_model_is_read_if_all_stages_are_finished(loading, data):
    config = load_config(str(loading))
    stages = plan(config, data.fingerprint)
    shutil.rmtree(loading.parent / "teacher")
    assert check_models(config, []) == []
    with pytest.raises(UserError, match="is not a directory"):
        check_models(config, stages[-1:])


def test_weights_of_a_finished_stage_are_not_read_again(loading, data):
    config = load_config(str(loading))
    stages = plan(config, data.fingerprint)
    path = loading.parent / "teacher" / "model.safetensors"
    save_file(
        {name: tensor * float("nan") for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"}
    )
    check_models(config, [stage for stage in stages if stage.kind != "teacher"])
    with pytest.raises(UserError, match="NaN or infinite"):
        check_models(config, stages)


def test_tokenizers_of_the_hub_are_compared_and_may_be_missing(loading, hub):
    """The comparison reads only the headers of weights, and does not import transformers."""
    path, repository = loading.parent / "teacher", hub.model("some/switch")
    config = {name: (path / name).read_bytes() for name in ("config.json", "model.safetensors")}
    repository.commit(config, "bare")
    repository.commit({**config, "tokenizer.json": (path / "tokenizer.json").read_bytes()}, "same")
    swap(path)
    repository.commit({**config, "tokenizer.json": (path / "tokenizer.json").read_bytes()}, "swapped")

    def ask(revision: str) -> list[str]:
        override = f"teacher.checkpoints={{e2: some/switch@{revision}}}"
        return new_python(_CHECK, str(loading), override, "baseline.checkpoint=null", **hub.environment).splitlines()

    assert ask("bare") == ["[0]", "False"]
    assert ask("same") == ["[512]", "False"]
    (refusal, _) = ask("swapped")
    assert refusal.startswith("teacher 'some/switch@swapped' and data.tokenizer ")
    assert "2 of 512 tokens differ" in refusal and refusal.endswith("set data.tokenizer to some/switch@swapped")
