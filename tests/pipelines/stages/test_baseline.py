from types import SimpleNamespace

import pytest
import torch

from distill.models.build import build_dense
from pipelines.stages.baseline import _model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_loaded_baseline_has_float32_weights_in_any_stored_precision(shape, tmp_path, dtype):
    """Teachers and students have float32 weights too, so that precision does not cause a difference."""
    stored = build_dense(shape, 128, pad=0, eos=1, seed=0).to(dtype)
    stored.save_pretrained(tmp_path)
    config = SimpleNamespace(baseline=SimpleNamespace(checkpoint=str(tmp_path)))
    run = SimpleNamespace(
        config=config, data=SimpleNamespace(special_tokens=SimpleNamespace(vocabulary_size=128)), inputs={}
    )
    loaded = dict(_model(run).named_parameters())
    for name, weight in stored.named_parameters():
        assert loaded[name].dtype == torch.float32 and torch.equal(loaded[name], weight.float())
