import pytest

from distill.config import ModelConfig, TrainingConfig
from distill.model_size import num_parameters
from distill.models.build import build_dense, count_parameters
from distill.training.best_weights import MAX_WEIGHTS
from distill.training.checkpoint import MAX_CHECKPOINTS
from pipelines.workdir import disk_budget
from pipelines.workdir.disk_budget import checkpoints_bytes
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
