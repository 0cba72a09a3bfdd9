import numpy as np
import pytest
import torch.nn.functional as F

from distill.data import Batch, Examples
from distill.evaluation import evaluate, negative_log_perplexity
from distill.seq2seq import build_dense
from distill.training import make_accelerator


@pytest.fixture
def model(shape, data):
    return build_dense(shape.model_copy(update={"dropout": 0.5}), data.vocab_size, pad=0, eos=1, seed=0).train()


def test_equals_the_mean_cross_entropy_of_transformers_logits(model, data, data_config):
    batches = list(Examples(data, data_config, seed=None).evaluation_batches(5))
    quality, losses = negative_log_perplexity(model, batches)
    assert model.training  # as it was, though measured without dropout
    model.eval()
    expected = []
    for batch in batches:
        logits = model(**batch._asdict()).logits.double()
        for row, labels in zip(logits, batch.labels, strict=True):
            expected.append(F.cross_entropy(row, labels).item())
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert quality == pytest.approx(-np.mean(expected), rel=1e-6)


def test_ignored_labels_do_not_count(model, data, data_config):
    inputs, labels = Examples(data, data_config, seed=None).batch(range(3))
    labels[0, 2:] = -100
    quality, losses = negative_log_perplexity(model, [Batch(inputs, labels)])
    counts = (labels != -100).sum(-1).numpy()
    assert quality == pytest.approx(-(losses * counts).sum() / counts.sum(), rel=1e-6)
    labels[1] = -100
    with pytest.raises(ValueError, match="at least one label"):
        negative_log_perplexity(model, [Batch(inputs, labels)])


def test_nothing_to_measure_is_an_error(model):
    with pytest.raises(ValueError, match="at least one example"):
        negative_log_perplexity(model, [])


def test_evaluate_measures_all_test_examples(model, data, data_config):
    examples = Examples(data, data_config, seed=None)
    quality, losses = evaluate(model, examples, batch_size=5, accelerator=make_accelerator("float32"))
    expected, one_by_one = negative_log_perplexity(model, examples.evaluation_batches(1))
    assert losses.shape == (12,) and quality == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(losses, one_by_one, rtol=1e-4)
