"""Saved teachers: loaded by load_teacher, and by plain transformers if it supports them."""

import contextlib
import json

import pytest
import torch
from transformers import SwitchTransformersForConditionalGeneration

from teachers import load_teacher, save_teacher
from teachers.build import build_teacher, switch_layers
from tests.teachers.plain_teacher import NO_DROPPING


@pytest.mark.parametrize("feed_forward", ["relu", "gelu", "gated-gelu"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_built_teacher_survives_saving(tmp_path, shape, batch, feed_forward, tied):
    shape = shape.model_copy(update={"feed_forward": feed_forward, "tie_word_embeddings": tied})
    built = build_teacher(shape, NO_DROPPING, 64, 4, pad=0, eos=1, seed=3).eval()
    save_teacher(built, tmp_path / "saved")
    torch.testing.assert_close(
        load_teacher(tmp_path / "saved", NO_DROPPING)(**batch).logits, built(**batch).logits, rtol=0, atol=0
    )


@pytest.mark.parametrize("feed_forward,named", [("gelu", "gelu"), ("gated-gelu", "gated-gelu")])
def test_plain_transformers_refuses_a_gated_teacher(tmp_path, shape, feed_forward, named):
    """It has no gated FFNs, and would initialise missing FFNs randomly."""
    shape = shape.model_copy(update={"feed_forward": feed_forward})
    save_teacher(build_teacher(shape, NO_DROPPING, 64, 4, pad=0, eos=1, seed=0), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dense_act_fn"] == named
    with pytest.raises(KeyError, match="gated-gelu") if named != "gelu" else contextlib.nullcontext():
        SwitchTransformersForConditionalGeneration.from_pretrained(tmp_path)


def test_saving_into_a_directory_leaves_its_other_files(tmp_path, shape):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    (tmp_path / "mine" / "config.json").write_text("old")
    save_teacher(build_teacher(shape, NO_DROPPING, 64, 4, pad=0, eos=1, seed=0), tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"
    assert len(switch_layers(load_teacher(tmp_path / "mine"))) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]
