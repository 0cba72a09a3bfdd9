"""The training costs in a report."""

from types import SimpleNamespace

import pytest

from distill.data.prepared_data import Lengths
from distill.model_size import forward_flops
from pipelines.config.run_config import load_config
from pipelines.stages.report import _long_cost, _training_cost
from pipelines.workdir.plan import plan
from pipelines.workdir.stage import FinishedStage

DENSE = {"d_model": 4, "d_ff": 8, "d_kv": 2, "num_heads": 2, "num_layers": 2, "num_decoder_layers": 2, "vocab_size": 9}
SWITCH = {**DENSE, "num_experts": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}
STEPS = {
    "baseline": [{"steps": 8, "full_steps": 16}, {"steps": 7, "full_steps": 14}],
    "long-baseline": [{"steps": 8}, {"steps": 5}],
    "teacher": [{"steps": 16}, {"steps": 10}],
    "distill": [{"steps": 4}, {"steps": 1}],
}


@pytest.fixture
def run() -> SimpleNamespace:
    """The report of two seeds whose models have stopped early, each after steps of its own. A batch has 8 examples."""
    config = load_config("smoke", ["teacher.experts=[2]", "seeds=[0, 1]", "distill.soft_start=2"])
    stage = plan(config, "data")[-1]
    inputs = {
        role: FinishedStage(
            one.title,
            one.fingerprint,
            "",
            None,
            None,
            {},
            facts=STEPS[one.kind][one.seed] | {"shape": shape},
            directory=None,
        )
        for role, one in stage.inputs.items()
        for shape in [SWITCH if one.kind == "teacher" else DENSE]
    }
    data = SimpleNamespace(mean_lengths=lambda _: Lengths(10, 5))
    return SimpleNamespace(config=config, stage=stage, inputs=inputs, data=data)


def test_the_training_of_a_model_is_a_mean_over_its_seeds(run):
    found = _training_cost(run, "e2", None)
    teacher, student = forward_flops(SWITCH, 10, 5), forward_flops(DENSE, 10, 5)
    assert (found["teacher_steps"], found["teacher_tokens"]) == (13, 13 * 8 * 15)
    assert found["teacher_flops"] == pytest.approx(3 * 13 * 8 * teacher)
    assert (found["student_steps"], found["student_tokens"]) == (2, 2.5 * 8 * 15)
    # The teacher runs from the third step on: at two steps with seed 0, and at none with seed 1.
    assert found["student_flops"] == pytest.approx(3 * 2.5 * 8 * student + (2 + 0) / 2 * 8 * teacher)


def test_the_training_of_the_long_baseline_has_two_parts(run):
    found = _long_cost(run)
    assert (found["steps"], found["tokens"]) == (15 + 6, 21.5 * 8 * 15)
    assert found["flops"] == pytest.approx(3 * 21.5 * 8 * forward_flops(DENSE, 10, 5))
