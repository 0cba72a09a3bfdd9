import pytest

from distill.seq2seq import build_dense
from students.checkpoint import check_dense


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
def test_what_transformers_saves_is_accepted(tmp_path, shape, feed_forward, tied):
    shape = shape.model_copy(update={"feed_forward": feed_forward, "tie_word_embeddings": tied})
    build_dense(shape, 128, pad=0, eos=1, seed=0).save_pretrained(tmp_path)
    assert check_dense(str(tmp_path), "it") == 128
