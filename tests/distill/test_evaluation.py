from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from distill import evaluation
from distill.data.examples import Batch, Examples
from distill.evaluation import cross_entropies, evaluate, negative_log_perplexity
from distill.models.build import build_dense
from distill.models.layerwise import ByLayer, in_memory
from distill.training.loop import make_accelerator


@pytest.fixture
def model(shape, data):
    return build_dense(shape.model_copy(update={"dropout": 0.5}), data.vocab_size, pad=0, eos=1, seed=0).train()


def test_equals_the_mean_cross_entropy_of_transformers_logits(model, data, data_config):
    examples = Examples(data, data_config, seed=None)
    batches = [examples.batch(rows) for rows in (range(5), range(5, 10), range(10, 12))]
    quality, losses = negative_log_perplexity(model, batches)
    assert model.training  # the mode is restored, although evaluation has no dropout
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
    expected, one_by_one = negative_log_perplexity(model, [examples.batch([index]) for index in range(12)])
    assert losses.shape == (12,) and quality == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(losses, one_by_one, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_come_chunk_by_chunk(dtype, monkeypatch):
    """With 13 tokens and 50 ids, at most 4 x 50 logits are in memory at a time; the losses equal the definition."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(13, 8, generator=generator).to(dtype)
    head, labels = torch.randn(50, 8, generator=generator), torch.randint(0, 50, (13,), generator=generator)
    labels[3] = -100
    logits = (hidden @ head.to(dtype).T).double().numpy()
    expected = np.log(np.exp(logits).sum(-1)) - logits[np.arange(13), labels.clamp(min=0)]
    expected[3] = 0
    rows, linear = [], F.linear
    monkeypatch.setattr(evaluation, "_CHUNK", 200)
    monkeypatch.setattr(evaluation.F, "linear", lambda x, weight: rows.append(len(x)) or linear(x, weight))
    losses = cross_entropies(hidden, head, labels)
    np.testing.assert_allclose(losses, expected, rtol=1e-5 if dtype == torch.float32 else 2e-2, atol=1e-6)
    if dtype == torch.float32:  # torch's losses of bfloat16 logits are bfloat16
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=4)
        torchs_own = F.linear_cross_entropy(hidden, head, labels, reduction="none", options=options)
        torch.testing.assert_close(losses, torchs_own, rtol=1e-5, atol=1e-6)
    assert rows == [4, 4, 4, 1] and losses.dtype == torch.float32


def test_each_process_builds_its_own_batches_alone(model, data, data_config):
    examples = Examples(data, data_config, seed=None)
    whole = evaluate(model, examples, batch_size=5, accelerator=make_accelerator("float32"))[1]
    built, batch = [], examples.batch
    examples.batch = lambda rows: built.append(rows) or batch(rows)
    real = make_accelerator("float32")
    shares = []
    for rank in range(2):
        fake = SimpleNamespace(
            num_processes=2, process_index=rank, device=real.device, autocast=real.autocast, reduce=lambda x, how: x
        )
        shares.append(evaluate(model, examples, batch_size=5, accelerator=fake)[1])
    assert built == [range(5), range(10, 12), range(5, 10)]
    np.testing.assert_array_equal(sum(shares), whole)


def test_a_pass_by_layer_gives_the_same_losses(model, data, data_config, tmp_path):
    examples = Examples(data, data_config, seed=None)
    forward = ByLayer(in_memory, memory=1000, slice_bytes=20_000, directory=tmp_path)
    arguments = {"batch_size": 5, "accelerator": make_accelerator("float32")}
    quality, losses = evaluate(model, examples, **arguments, forward=forward)
    expected, expected_losses = evaluate(model, examples, **arguments)
    assert quality == expected and losses.tolist() == expected_losses.tolist()
