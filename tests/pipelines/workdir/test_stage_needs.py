"""The needs of the stages, against the functions that the stages themselves use."""

import pytest
import torch

from pipelines.config.run_config import load_config
from pipelines.workdir.inspection import inspect_model
from pipelines.workdir.stage_needs import example_lengths, operations, stage_needs
from teachers.load import open_teacher
from teachers.memory import needs
from teachers.needs import BatchShape
from tests.teachers.plain_teacher import save_plain_teacher

CONFIG = load_config("switch-base")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> str:
    directory = tmp_path_factory.mktemp("teacher")
    save_plain_teacher(directory)
    return str(directory)


def test_a_teacher_that_does_not_fit_runs_layer_by_layer(teacher):
    model = inspect_model(teacher)
    batch = BatchShape(CONFIG.teacher.evaluation_batch_size, 512, 114)
    known = needs(open_teacher(teacher), CONFIG.teacher, torch.float32, batch)
    least = known.non_experts + max(known.layers.values()) + known.working

    def label(memory: int) -> tuple[str, int]:
        found = stage_needs(model, CONFIG, "float32", memory)["label"]
        return found["runs"], found["memory"]

    assert label(known.whole) == ("in memory", known.whole)
    assert label(known.whole - 1) == label(least) == ("layer by layer", least)
    assert label(least - 1) == ("not here", known.whole)
    training = stage_needs(model, CONFIG, "float32", known.whole)
    assert training["distill"]["runs"] == "not here" and training["distill"]["memory"] > known.non_experts


def test_examples_have_the_lengths_of_the_corruption_or_of_the_task():
    assert example_lengths(CONFIG) == (512, 114)
    assert example_lengths(load_config("dates")) == (24, 32)


def test_the_work_directory_holds_models_checkpoints_and_labels(teacher):
    model = inspect_model(teacher)
    needed = {stage: one["work_directory"] for stage, one in stage_needs(model, CONFIG, "float32", 1).items()}
    weights = 4 * model.parameters()["student"]
    # Adafactor keeps hardly any state. Training has three checkpoints, the baseline seven; a student is stored twice.
    assert needed["init"] == weights and needed["distill"] == (2 + 3) * weights and needed["baseline"] == 8 * weights
    # Sampled labels: 16 ids and an entropy of 2 bytes each.
    assert needed["label"] == CONFIG.distill.num_labelled_examples * 114 * (16 + 1) * 2
    assert needed["teacher"] == 0


def test_a_teacher_computes_little_more_than_its_student(teacher):
    found = operations(inspect_model(teacher), CONFIG)
    routers = 2 * (2 * 512 + 2 * 114) * 16 * 4
    assert found["teacher"] - found["student"] == routers
