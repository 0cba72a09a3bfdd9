"""What a stage takes of a node, for several clusters; the estimate of memory against the functions below it."""

import pytest

from distill.errors import UserError
from distill.model_size import num_parameters
from distill.training.precision import resolve_precision
from pipelines.config.run_config import load_config
from pipelines.workdir.inspection import inspect_model
from pipelines.workdir.plan import plan
from pipelines.workdir.resources import PYTHON, Slots, memory_bytes
from pipelines.workdir.stage_needs import stage_needs
from pipelines.workdir.workspace import Workspace
from tests.teachers.plain_teacher import save_plain_teacher

GB = 10**9


@pytest.mark.parametrize(
    "nodes, jobs, cpus, gpus, number",
    [
        ([{"CPU": 2, "memory": 8 * GB}], 1, 2, 0, 1),
        ([{"CPU": 2, "memory": 8 * GB}], 2, 1, 0, 2),
        ([{"CPU": 2, "memory": 8 * GB}], 5, 1, 0, 2),  # a task takes at least one CPU
        ([{"CPU": 2, "memory": 3 * GB}], 2, 1, 0, 1),  # the memory is for one of them
        ([{"CPU": 8, "memory": 8 * GB}, {"CPU": 4, "memory": 8 * GB}], 2, 2, 0, 6),
        ([{"memory": 8 * GB}, {"CPU": 4, "memory": 8 * GB}], 1, 4, 0, 1),  # a head that runs no tasks
        ([{"CPU": 64, "GPU": 8, "memory": 8 * GB}], 1, 8, 1, 8),  # the memory is that of the GPUs
        ([{"CPU": 64, "GPU": 8}, {"CPU": 16, "memory": 8 * GB}], 1, 8, 1, 8),
    ],
)
def test_a_cluster_is_divided_into_stages(nodes, jobs, cpus, gpus, number):
    slots = Slots.of(nodes, jobs)
    assert (slots.cpus, slots.gpus) == (cpus, gpus)
    options = {"num_cpus": slots.cpus, "num_gpus": slots.gpus}
    assert slots.number(options if gpus else {**options, "memory": 2 * GB}) == number


@pytest.mark.parametrize("nodes", [[], [{"memory": GB}]])
def test_a_cluster_without_cpus_is_refused(nodes):
    with pytest.raises(UserError, match="no node of the Ray cluster has a CPU"):
        Slots.of(nodes, 1)


@pytest.fixture
def workspace(tmp_path, data_config):
    from rich.console import Console

    values = ["data.corpus", "data.vocabulary", "data.input_length", "data.test_fraction", "data.test_examples"]
    overrides = [f"{name}={getattr(data_config, name.removeprefix('data.'))}" for name in values]
    config = load_config("smoke", [*overrides, "distill.soft_labels=cached"])
    return Workspace(config, "smoke", tmp_path / "work", Console(quiet=True))


def test_a_stage_needs_more_memory_than_its_weights_gradients_and_optimizer(workspace):
    needs = {stage.title: memory_bytes(workspace, stage, GB) for stage in workspace.stages[:-1]}
    model, vocabulary = workspace.config.model, workspace.data.vocab_size
    for title, experts in (("baseline", 0), ("teacher e2", 2), ("teacher e4", 4), ("distill e4", 0)):
        weights = 4 * num_parameters(model, vocabulary, experts)
        assert PYTHON + 2 * weights < needs[title] < PYTHON + 100 * weights
    assert needs["teacher e2"] < needs["teacher e4"]
    assert needs["label e4"] == PYTHON + 4 * num_parameters(model, vocabulary, 4)
    assert Slots.of([{"CPU": 1, "memory": GB}], 1).options(workspace, workspace.stages[0]) == {
        "num_cpus": 1,
        "num_gpus": 0,
        "memory": needs["baseline"],
    }
    with pytest.raises(UserError, match="baseline needs about .* the largest node of the Ray cluster has 1.0 MB"):
        Slots.of([{"CPU": 1, "memory": 10**6}], 1).options(workspace, workspace.stages[0])


def test_a_larger_student_needs_more_memory(workspace):
    variants = {"same": {}, "wide": {"student": {"d_ff": 4096}}, "short": {"student": {"num_decoder_layers": 1}}}
    workspace.config = workspace.config.model_copy(update={"variants": variants})
    planned = plan(workspace.config, "data")
    stages = {stage.variant: stage for stage in planned if (stage.kind, stage.ratio) == ("distill", "e4")}
    needs = {name: memory_bytes(workspace, stage, GB) for name, stage in stages.items()}
    model, vocabulary = workspace.config.model, workspace.data.vocab_size
    wider = num_parameters(model.model_copy(update={"d_ff": 4096}), vocabulary) - num_parameters(model, vocabulary)
    assert needs["short"] < needs["same"] and needs["wide"] > needs["same"] + 2 * 4 * wider


def test_stages_of_a_loaded_teacher_need_what_inspect_says(workspace, tmp_path):
    save_plain_teacher(tmp_path)
    checkpoints = {"experts": [], "checkpoints": {"e4": str(tmp_path)}}
    teacher = workspace.config.teacher.model_copy(update=checkpoints)
    workspace.config = workspace.config.model_copy(update={"teacher": teacher})
    precision = resolve_precision(workspace.config.precision)
    known = stage_needs(inspect_model(str(tmp_path)), workspace.config, precision, GB)
    by_kind = {stage.kind: stage for stage in workspace.stages if stage.ratio in (None, "e4")}
    rows = {"init": "init", "label": "label", "distill": "distill, cached labels", "baseline": "baseline"}
    for kind, row in rows.items():
        assert memory_bytes(workspace, by_kind[kind], 2 * GB) == PYTHON + known[row]["memory"]
