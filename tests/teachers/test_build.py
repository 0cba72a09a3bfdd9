import pytest
import torch

from teachers.build import build_teacher
from tests.teachers.plain_teacher import NO_DROPPING


@pytest.mark.parametrize("feed_forward", ["relu", "gelu", "gated-gelu"])
def test_weights_are_drawn_as_t5_draws_them_and_by_the_seed(shape, batch, feed_forward):
    shape = shape.model_copy(update={"feed_forward": feed_forward})
    built = build_teacher(shape, NO_DROPPING, 64, 4, pad=0, eos=1, seed=3).eval()
    for name, weight in built.named_parameters():
        if ".mlp.w" in name and weight.ndim == 2:  # a dense FFN, with T5's initialisation
            assert weight.std().item() == pytest.approx(weight.shape[1] ** -0.5, rel=0.15), name
    again = build_teacher(shape, NO_DROPPING, 64, 4, pad=0, eos=1, seed=3).eval()
    torch.testing.assert_close(again(**batch).logits, built(**batch).logits, rtol=0, atol=0)
