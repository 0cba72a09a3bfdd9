from types import SimpleNamespace

import pytest
import torch

from distill.models.build import build_dense
from pipelines.stages.baseline import _model
from teachers.build import build_teacher
from teachers.config import SwitchConfig
from teachers.save import save_teacher


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_loaded_baseline_has_float32_weights_in_any_stored_precision(shape, tmp_path, dtype):
    """Teachers and students have float32 weights too, so that precision does not cause a difference."""
    stored = build_dense(shape, 128, pad=0, eos=1, seed=0).to(dtype)
    stored.save_pretrained(tmp_path)
    config = SimpleNamespace(baseline=SimpleNamespace(checkpoint=str(tmp_path), d_ff=None))
    run = SimpleNamespace(
        config=config, data=SimpleNamespace(special_tokens=SimpleNamespace(vocabulary_size=128)), inputs={}
    )
    loaded = dict(_model(run).named_parameters())
    for name, weight in stored.named_parameters():
        assert loaded[name].dtype == torch.float32 and torch.equal(loaded[name], weight.float())


@pytest.mark.parametrize("d_ff", [None, 24, 96])
def test_a_new_baseline_has_the_shape_of_a_loaded_teacher_and_its_own_width(shape, tmp_path, d_ff):
    teacher = build_teacher(shape, SwitchConfig(), 128, 4, pad=0, eos=1, seed=0)
    save_teacher(teacher, tmp_path)
    config = SimpleNamespace(
        baseline=SimpleNamespace(checkpoint=None, d_ff=d_ff),
        teacher=SimpleNamespace(checkpoints={"e4": str(tmp_path)}),
    )
    run = SimpleNamespace(config=config, data=SimpleNamespace(special_tokens=None), inputs={}, seed=0)
    wide = shape.model_copy(update={"d_ff": d_ff or shape.d_ff})
    expected = build_dense(wide, 128, pad=0, eos=1, seed=0)
    sizes = {name: tuple(weight.shape) for name, weight in _model(run).named_parameters()}
    assert sizes == {name: tuple(weight.shape) for name, weight in expected.named_parameters()}
