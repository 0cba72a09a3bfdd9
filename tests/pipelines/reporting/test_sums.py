"""Sums over documents against NumPy, against a bootstrap that scores whole resampled corpora, and in a simulation."""

import numpy as np
import pytest

from distill.metrics import METRICS
from pipelines.reporting.bootstrap import average_kept, compare, fraction_kept, gain
from pipelines.reporting.sums import loss_sums, metric_sums

WORDS = [f"word{number}" for number in range(12)]


def corpus(documents: int, rng: np.random.Generator) -> tuple[list[str], np.ndarray, np.ndarray]:
    """References of different lengths, the document of each, and how difficult each document is, [documents]."""
    number = np.repeat(np.arange(documents), rng.integers(1, 8, documents))
    references = [" ".join(rng.choice(WORDS, rng.integers(4, 15))) for _ in number]
    return references, number, rng.beta(2, 2, documents)


def answers(references: list[str], changed: np.ndarray, rng: np.random.Generator) -> list[str]:
    """References in which each word is exchanged or left out with the probability ``changed`` [examples]."""
    found = []
    for reference, share in zip(references, changed, strict=True):
        drawn = rng.random((2, len(words := reference.split())))
        other = rng.choice(WORDS, len(words))
        kept = [b if x < share else a for a, b, x in zip(words, other, drawn[0], strict=True)]
        found.append(" ".join(word for word, x in zip(kept, drawn[1], strict=True) if x > share / 3))
    return found


@pytest.mark.parametrize("name", METRICS)
def test_the_influence_on_a_metric_is_that_of_a_bootstrap_of_the_corpus(name):
    """The score of every resampled corpus, and of the same resample the value that the sums give."""
    rng, metric = np.random.default_rng(3), METRICS[name]
    references, documents, difficulty = corpus(60, rng)
    statistics = np.stack(
        [metric.statistics(answers(references, scale * difficulty[documents], rng), references) for scale in (0.3, 0.6)]
    )
    figures = [metric_sums(metric, one[None], documents) for one in statistics]
    sign = 1 if metric.better == "higher" else -1
    by_document = np.stack([np.add.reduceat(one, np.unique(documents, return_index=True)[1]) for one in statistics])
    assert [one.value for one in figures] == pytest.approx(sign * metric.score(by_document.sum(axis=1)))
    drawn = rng.multinomial(60, np.full(60, 1 / 60), 1000)
    exact = sign * (metric.score(drawn @ by_document[0]) - metric.score(drawn @ by_document[1]))
    by_sums = [drawn @ one.sums[0] / (drawn @ one.sizes) for one in figures]
    linear = by_sums[0] - by_sums[1]
    assert np.corrcoef(exact, linear)[0, 1] > 0.99
    assert np.std(linear) == pytest.approx(np.std(exact), rel=0.05)
    assert np.mean(linear) == pytest.approx(np.mean(exact), abs=0.3 * np.std(exact))


@pytest.mark.parametrize("name", ["exact_match", "token_f1", "error_rate"])
def test_a_metric_that_is_a_ratio_has_its_own_sums(name):
    rng, metric = np.random.default_rng(0), METRICS[name]
    references, documents, difficulty = corpus(30, rng)
    statistics = metric.statistics(answers(references, difficulty[documents], rng), references)
    found = metric_sums(metric, statistics[None], documents)
    sign = 1 if metric.better == "higher" else -1
    assert found.sums[0] == pytest.approx(sign * np.bincount(documents, statistics[:, 0]), abs=1e-6)
    assert found.sizes == pytest.approx(np.bincount(documents, statistics[:, 1]))


def test_a_metric_that_counts_nothing_has_no_influence():
    """Answers without a common word, as of an untrained model, and empty ones."""
    for name in ("chrf", "bleu"):
        for given in (["x y z w v"] * 4, [""] * 4):
            statistics = METRICS[name].statistics(given, ["a b c d e"] * 4)
            found = metric_sums(METRICS[name], statistics[None], np.arange(4))
            assert found.value == 0 and not found.sums.any()


def simulated(documents: int, seeds: int, rng: np.random.Generator) -> tuple[list[np.ndarray], np.ndarray]:
    """Statistics of chrF of baseline, teacher and student, [seeds, examples, 18] each, and documents [examples].

    A model is right about an n-gram with the n-th power of a probability, which depends on the document and the seed.
    """
    number = np.repeat(np.arange(documents), 4)
    length = rng.integers(10, 40, len(number))
    difficulty, of_seed = rng.normal(0, 0.05, documents), 0.01 * (seeds > 1)
    models = []
    for level in (0.5, 0.7, 0.62):
        own = level + difficulty + rng.normal(0, 0.03, documents) + rng.normal(0, of_seed, (seeds, 1))
        right = np.clip(own, 0.01, 0.99)[:, number]
        counts = [np.broadcast_to(length - order, right.shape) for order in range(6)]
        both = [rng.binomial(count, right ** (order + 1)) for order, count in enumerate(counts)]
        columns = [one for count, matches in zip(counts, both, strict=True) for one in (count, count, matches)]
        models.append(np.stack(columns, axis=-1).astype(float))
    return models, number


@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_of_a_metric_have_their_nominal_coverage(seeds):
    rng, metric = np.random.default_rng(0), METRICS["chrf"]
    models, _ = simulated(10_000, 1 if seeds == 1 else 20, rng)
    truth = [metric.score(one.sum(axis=1)).mean() for one in models]
    gained, kept = truth[1] - truth[0], (truth[2] - truth[0]) / (truth[1] - truth[0])
    covered = []
    for _ in range(200):
        models, documents = simulated(40, seeds, rng)
        found = compare(*(metric_sums(metric, one, documents) for one in models), resamples=300)
        pairs = ((found.gain_interval, gained), (found.fraction_interval, kept))
        covered.append([low <= value <= high for (low, high), value in pairs])
    assert (np.mean(covered, axis=0) > 0.91).all() and (np.mean(covered, axis=0) < 0.985).all()


def test_a_metric_of_which_lower_is_better_has_a_positive_gain():
    """The teacher makes 1 error in 4 words, the student 2, the baseline 3."""
    references, documents = ["a b c d"] * 40, np.arange(40)
    texts = {"baseline": "a x x x", "teacher": "a b c x", "student": "a b x x"}
    metric = METRICS["error_rate"]
    of = {
        name: metric_sums(metric, metric.statistics([t] * 40, references)[None], documents) for name, t in texts.items()
    }
    found = compare(of["baseline"], of["teacher"], of["student"])
    assert found.gain == pytest.approx(0.5) and found.fraction == pytest.approx(0.5)


@pytest.fixture
def losses():
    """Of baseline, teacher and student, [3 seeds, 200 examples], their documents, and weights."""
    rng = np.random.default_rng(1)
    baseline = rng.normal(4.0, 0.5, (3, 200))
    gained = rng.normal(0.3, 0.1, (3, 200))
    student = baseline - 0.4 * gained + rng.normal(0, 0.02, (3, 200))
    return [baseline, baseline - gained, student], rng.integers(0, 50, 200), rng.integers(1, 60, 200)


@pytest.mark.parametrize("grouped", [True, False])
def test_weighted_figures_are_weighted_means(losses, grouped):
    models, documents, weights = losses
    options = {"weights": weights, "documents": documents if grouped else None}
    quality = [-np.average(one, axis=1, weights=weights).mean() for one in models]
    assert [one.value for one in loss_sums(models, **options)] == pytest.approx(quality)
    value, (low, high) = gain(*models[:2], **options)
    assert value == pytest.approx(quality[1] - quality[0]) and low < value < high
    fraction, (low, high) = fraction_kept(*models, **options)
    assert fraction == pytest.approx((quality[2] - quality[0]) / value) and low < fraction < high
    mean, _ = average_kept(models[0], [models[1], models[1]], [models[2], models[1]], **options)
    assert mean == pytest.approx((fraction + 1) / 2)


def test_weights_that_are_equal_change_nothing(losses):
    models, documents, _ = losses
    even = {"weights": np.full(200, 7), "documents": documents}
    for found, expected in (
        (fraction_kept(*models, **even), fraction_kept(*models, documents=documents)),
        (gain(*models[:2], **even), gain(*models[:2], documents=documents)),
    ):
        assert found[0] == pytest.approx(expected[0]) and found[1] == pytest.approx(expected[1])


def test_an_example_of_weight_2_counts_as_two_examples(losses):
    models, documents, _ = losses
    twice = np.repeat(np.arange(200), np.where(np.arange(200) % 3, 1, 2))
    weights = np.bincount(twice)
    by_weight = fraction_kept(*models, documents=documents, weights=weights)
    by_copies = fraction_kept(*(one[:, twice] for one in models), documents=documents[twice])
    assert by_weight[0] == pytest.approx(by_copies[0]) and by_weight[1] == pytest.approx(by_copies[1])


@pytest.mark.parametrize("weights", [np.ones(199), np.zeros(200), np.full(200, np.nan), np.full(200, -1)])
def test_wrong_weights_are_refused(losses, weights):
    with pytest.raises(ValueError, match="weights must have one number above 0 for each of 200 examples"):
        loss_sums(losses[0], weights=weights)


def test_statistics_without_a_document_each_are_refused():
    statistics = METRICS["exact_match"].statistics(["a", "b"], ["a", "b"])
    with pytest.raises(ValueError, match="documents must have one entry for each of 2 examples"):
        metric_sums(METRICS["exact_match"], statistics[None], np.arange(3))
