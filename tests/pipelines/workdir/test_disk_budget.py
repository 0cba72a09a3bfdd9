from types import SimpleNamespace

import pytest

from distill.config import ModelConfig, TrainingConfig
from distill.model_size import num_parameters
from distill.models.build import build_dense, count_parameters
from distill.training.best_weights import MAX_WEIGHTS
from distill.training.checkpoint import MAX_CHECKPOINTS
from pipelines.config.run_config import load_config
from pipelines.workdir import disk_budget
from pipelines.workdir.disk_budget import check_space, checkpoints_bytes
from pipelines.workdir.plan import plan
from students import init_student
from teachers.build import build_teacher
from teachers.config import SwitchConfig

SHAPE = ModelConfig(d_model=16, d_ff=24, d_kv=8, num_heads=3, num_layers=4)
IDS = {"pad": 0, "eos": 1, "seed": 0}


@pytest.mark.parametrize(
    "changes",
    [{}, {"feed_forward": "gated-gelu"}, {"tie_word_embeddings": False}, {"sparse_every": 1}, {"sparse_every": 4}],
)
def test_parameters_are_counted_without_building_the_model(changes):
    shape = SHAPE.model_copy(update=changes)
    assert num_parameters(shape, 128) == count_parameters(build_dense(shape, 128, **IDS))
    teacher = build_teacher(shape, SwitchConfig(), 128, 6, **IDS)
    assert num_parameters(shape, 128, 6) == count_parameters(teacher)
    student = init_student(teacher, d_ff=40, num_decoder_layers=3)
    wide = shape.model_copy(update={"d_ff": 40})
    assert num_parameters(wide, 128, num_decoder_layers=3) == count_parameters(student)


@pytest.mark.parametrize("lengths,checkpoints", [(1, 3), (2, 7), (3, 11)])
def test_a_training_has_two_checkpoints_of_each_part_and_writes_one(lengths, checkpoints):
    assert disk_budget._KEPT == MAX_CHECKPOINTS
    assert checkpoints_bytes(TrainingConfig(), 1000, lengths) == checkpoints * 12_000


@pytest.mark.parametrize("lengths,checkpoints,weights", [(1, 3, 4), (2, 5, 7)])
def test_with_early_stopping_each_length_has_best_weights_and_no_trunk(lengths, checkpoints, weights):
    assert disk_budget._KEPT_WEIGHTS == MAX_WEIGHTS
    training = TrainingConfig(patience=2, evaluate_every=10)
    assert checkpoints_bytes(training, 1000, lengths) == checkpoints * 12_000 + weights * 4000


def test_the_long_baseline_has_checkpoints_of_each_of_the_students_lengths(tmp_path):
    config = load_config("smoke", ["distill.lengths=[4, 6]"])
    stages = {stage.title: stage for stage in plan(config, "data")}
    workspace = SimpleNamespace(config=config, data=SimpleNamespace(vocab_size=512), directory=tmp_path)
    needed = {
        title: disk_budget._checkpoint_bytes(workspace, stages[title]) for title in ("long-baseline", "distill e4")
    }
    assert needed["long-baseline"] == needed["distill e4"] > 0


def test_the_files_of_a_stage_lower_no_more_than_its_own_need(tmp_path, monkeypatch):
    """The student of a loaded teacher is not counted, and neither are its files. A teacher counts once."""
    loaded = f"teacher={{experts: [4], checkpoints: {{e2: {tmp_path}}}, training: {{steps: 16, warmup_steps: 2}}}}"
    config = load_config("smoke", [loaded, "data.tokenizer=t5"])
    stages = {stage.title: stage for stage in plan(config, "data")}
    workspace = SimpleNamespace(
        config=config, data=SimpleNamespace(vocab_size=512), directory=tmp_path, find=lambda stage: None
    )
    needed: list[int] = []
    monkeypatch.setattr(disk_budget, "require_space", lambda path, size, description: needed.append(size))

    def need(*titles: str, written: int = 0) -> int:
        for title in titles:
            directory = stages[title].directory(tmp_path)
            directory.mkdir(parents=True, exist_ok=True)
            with open(directory / "file", "wb") as file:
                file.truncate(written)
        check_space(workspace, list(stages.values()))
        return needed[-1]

    whole = need()
    assert whole > 1_000_000 and need("distill e2", "report", written=10**9) == whole
    assert need("teacher e4", written=1000) == whole - 1000
    assert need("teacher e4", written=10**9) == need("teacher e4", written=10**10) > 0
