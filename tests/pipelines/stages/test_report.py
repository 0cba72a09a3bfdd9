from types import SimpleNamespace

import pytest

from distill.errors import UserError
from distill.models.build import build_dense
from pipelines.stages.report import _check_same_shape
from pipelines.workdir.stage import Finished, Stage


def test_models_of_different_shapes_are_not_compared(shape, tmp_path):
    """Where what was compared before the start is not what was trained."""
    models = {"baseline": shape, "e2": shape, "e4": shape.model_copy(update={"tie_word_embeddings": False})}
    inputs, stages = {}, {}
    for name, of in models.items():
        build_dense(of, 128, pad=0, eos=1, seed=0).save_pretrained(tmp_path / name / "model")
        kind, ratio = ("baseline", None) if name == "baseline" else ("distill", name)
        stages[name] = Stage(kind, {}, ratio=ratio)
        inputs[name] = Finished(stages[name].title, "", "", None, None, {}, {}, tmp_path / name)

    def check(*ratios: str) -> None:
        config = SimpleNamespace(variants={}, teacher=SimpleNamespace(ratios=dict.fromkeys(ratios)))
        _check_same_shape(SimpleNamespace(config=config, stage=Stage("report", {}, stages), inputs=inputs))

    check("e2")
    with pytest.raises(UserError, match="student e4 and the baseline differ in tie_word_embeddings False and True"):
        check("e2", "e4")
