from types import SimpleNamespace

import pytest
import torch

from distill.models.build import build_dense
from pipelines.stages.baseline import _model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_loaded_baseline_is_trained_in_float32_whatever_it_is_stored_in(shape, tmp_path, dtype):
    """As teachers and students are, so that the difference is not that of their precision."""
    stored = build_dense(shape, 128, pad=0, eos=1, seed=0).to(dtype)
    stored.save_pretrained(tmp_path)
    config = SimpleNamespace(baseline=SimpleNamespace(checkpoint=str(tmp_path)))
    run = SimpleNamespace(config=config, data=SimpleNamespace(words=SimpleNamespace(size=128)))
    loaded = dict(_model(run).named_parameters())
    for name, weight in stored.named_parameters():
        assert loaded[name].dtype == torch.float32 and torch.equal(loaded[name], weight.float())
