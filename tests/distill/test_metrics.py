"""Metrics against the libraries that define them, plain Python, and a dynamic program."""

import importlib.util
import random
import re
import string
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu, corpus_chrf
from sacrebleu.metrics import BLEU, CHRF

from distill.errors import UserError
from distill.metrics import METRICS, check_metrics, edit_distance, looks_like_labels, remarks

WORDS = ["the", "a", "cat", "Cat", "sat", "on", "mat.", "mat", "naïve", "42", "--", "dog's", "猫", "ran"]


def texts(count: int, seed: int, longest: int = 12) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randrange(longest))) for _ in range(count)]


def answered(references: list[str], seed: int, changed: float = 0.3) -> list[str]:
    """Answers that are references with words exchanged, left out and added."""
    rng, answers = random.Random(seed), []
    for reference in references:
        words = []
        for word in reference.split():
            drawn = rng.random()
            words += [word] if drawn > changed else rng.choices(WORDS, k=rng.randrange(3))
        answers.append(" ".join(words))
    return answers


REFERENCES = [text or "mat" for text in texts(60, 1)]
ANSWERS = answered(REFERENCES, 2)


def levenshtein(first: list[str], second: list[str]) -> int:
    """Cell by cell."""
    cells = list(range(len(second) + 1))
    for number, one in enumerate(first, 1):
        row = [number]
        for place, other in enumerate(second, 1):
            row.append(min(cells[place] + 1, row[-1] + 1, cells[place - 1] + (one != other)))
        cells = row
    return cells[-1]


def squad_f1(answer: str, reference: str) -> float:
    """The equation of SQuAD, word by word."""

    def words(text: str) -> list[str]:
        kept = "".join(letter for letter in text.lower() if letter not in string.punctuation)
        return [word for word in kept.split() if word not in ("a", "an", "the")]

    found, wanted = words(answer), words(reference)
    common = sum(min(found.count(word), wanted.count(word)) for word in set(found))
    if not found or not wanted:
        return float(found == wanted)
    if not common:
        return 0.0
    precision, recall = common / len(found), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def test_exact_match_is_the_share_of_equal_texts():
    answers, references = [" yes", "no", "Yes", "a  b"], ["yes ", "yes", "yes", "a b"]
    for name in ("exact_match", "accuracy"):
        assert METRICS[name].value(answers, references) == 1 / 4
        assert METRICS[name].statistics(answers, references)[:, 0].tolist() == [1, 0, 0, 0]


def test_token_f1_is_that_of_squad():
    expected = [squad_f1(*pair) for pair in zip(ANSWERS, REFERENCES, strict=True)]
    statistics = METRICS["token_f1"].statistics(ANSWERS, REFERENCES)
    assert statistics[:, 0] == pytest.approx(expected) and len(set(expected)) > 10
    assert METRICS["token_f1"].value(ANSWERS, REFERENCES) == pytest.approx(np.mean(expected))
    assert METRICS["token_f1"].value(["The Cat!", "the"], ["a cat", "a"]) == 1


@pytest.mark.parametrize("longest", [4, 30, 200])
def test_the_error_rate_counts_edits_per_reference_word(longest):
    references = [text or "x" for text in texts(20, 5, longest)]
    answers = [*answered(references, 6)[:10], *texts(10, 7, longest)]
    edits = [levenshtein(one.split(), other.split()) for one, other in zip(answers, references, strict=True)]
    statistics = METRICS["error_rate"].statistics(answers, references)
    assert statistics[:, 0].tolist() == edits and any(edits)
    words = sum(len(reference.split()) for reference in references)
    assert METRICS["error_rate"].value(answers, references) == pytest.approx(sum(edits) / words)
    assert METRICS["error_rate"].better == "lower"


def test_the_edit_distance_of_short_texts():
    alphabet = ["", "a", "b"]
    short = [[*filter(None, (x, y, z))] for x in alphabet for y in alphabet for z in alphabet]
    for first in short:
        for second in short:
            assert edit_distance(first, second) == levenshtein(first, second)


@pytest.mark.parametrize("name", ["rouge1", "rouge2", "rougeL"])
def test_rouge_is_the_mean_f1_of_its_library(name):
    scorer = RougeScorer([name])
    pairs = zip(REFERENCES, ANSWERS, strict=True)
    expected = [scorer.score(reference, answer)[name].fmeasure for reference, answer in pairs]
    assert METRICS[name].value(ANSWERS, REFERENCES) == pytest.approx(np.mean(expected))
    assert 0.2 < np.mean(expected) < 0.95


# The last three: no common 4-gram, no common word, and answers of which none has four words.
CORPORA = [
    (ANSWERS, REFERENCES),
    (REFERENCES, REFERENCES),
    (texts(30, 8), REFERENCES[:30]),
    (["a cat ran on", "mat"], ["a cat sat on", "mat."]),
    (["x y z w v"], ["a b c d e"]),
    (["cat", "", "mat ran"], ["cat", "dog", "mat ran fast now"]),
    (["", ""], ["cat", "dog"]),
]


@pytest.mark.parametrize("answers,references", CORPORA)
def test_chrf_and_bleu_are_those_of_sacrebleu(answers, references):
    expected = {"chrf": corpus_chrf(answers, [references]), "bleu": corpus_bleu(answers, [references])}
    for name, found in expected.items():
        assert METRICS[name].value(answers, references) == pytest.approx(found.score, abs=1e-9)


@pytest.mark.parametrize("name", METRICS)
def test_the_score_of_many_sums_is_the_score_of_each(name):
    """As for resamples: sums over other examples, in an array with more axes."""
    metric = METRICS[name]
    statistics = metric.statistics(ANSWERS, REFERENCES)
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(ANSWERS), (2, 3, 20))
    scores = metric.score(statistics[drawn].sum(axis=2))
    assert scores.shape == (2, 3)
    for place in np.ndindex(2, 3):
        chosen = drawn[place]
        again = metric.value([ANSWERS[one] for one in chosen], [REFERENCES[one] for one in chosen])
        assert scores[place] == pytest.approx(again)


@pytest.mark.parametrize("name", METRICS)
def test_the_second_statistic_does_not_depend_on_the_answers(name):
    sizes = [METRICS[name].statistics(answers, REFERENCES)[:, 1] for answers in (ANSWERS, REFERENCES, [""] * 60)]
    assert (sizes[0] == sizes[1]).all() and (sizes[0] == sizes[2]).all() and (sizes[0] > 0).all()


@pytest.mark.parametrize("name", METRICS)
def test_a_perfect_answer_has_the_best_value(name):
    metric, references = METRICS[name], ["one two three four five six", "seven eight nine ten"]
    best = 0.0 if metric.better == "lower" else 1.0 if metric.in_percent else 100.0
    assert metric.value(references, references) == pytest.approx(best)
    worse = metric.value(["one two", "seven x nine ten"], references)
    assert worse > best if metric.better == "lower" else worse < best


def test_signatures_state_settings_and_versions():
    for name, metric in (("chrf", CHRF()), ("bleu", BLEU())):
        metric.corpus_score(ANSWERS, [REFERENCES])
        assert METRICS[name].signature() == str(metric.get_signature())
        assert re.search(r"version:2\.\d", METRICS[name].signature())
    assert METRICS["rouge1"].signature().endswith("rouge-score 0.1.2")
    assert METRICS["exact_match"].signature() is None


def test_unknown_metrics_are_refused():
    check_metrics(list(METRICS))
    with pytest.raises(UserError, match=r"metric 'rougel' is unknown; use one of exact_match, .*did you mean rougeL\?"):
        check_metrics(["chrf", "rougel"])


@pytest.mark.parametrize("name,library", [("chrf", "sacrebleu"), ("bleu", "sacrebleu"), ("rouge2", "rouge-score")])
def test_a_metric_without_its_library_is_refused(name, library, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    check_metrics(["exact_match", "error_rate", "token_f1"])
    expected = f"metric {name} needs {library}; install it: pip install 'switch-distill\\[metrics\\]'"
    with pytest.raises(UserError, match=expected):
        check_metrics(["exact_match", name])


def test_checking_imports_no_library():
    code = "import sys; from distill.metrics import METRICS, check_metrics; check_metrics(list(METRICS)); "
    code += "sys.exit(bool({'torch', 'numpy', 'sacrebleu', 'nltk', 'rouge_score'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_answers_that_do_not_belong_to_the_references_are_refused():
    for answers in (["a"], ["a", "b", "c"]):
        with pytest.raises(ValueError, match=f"{len(answers)} answers but 2 references"):
            METRICS["exact_match"].statistics(answers, ["a", "b"])
    with pytest.raises(ValueError, match="0 answers but 0 references"):
        METRICS["chrf"].statistics([], [])


def test_accuracy_on_free_text_is_remarked_on():
    labels = ["yes", "no", "no ", "maybe", "yes", "no"]
    assert looks_like_labels(labels) and not looks_like_labels(REFERENCES)
    assert remarks(["accuracy"], labels) == [] == remarks(["exact_match"], REFERENCES)
    differ = len(Counter(REFERENCES))
    (sentence,) = remarks(["accuracy"], REFERENCES)
    assert f"{differ} of 60 references differ" in sentence


def test_metrics_that_do_not_read_a_script_are_remarked_on():
    names = ["rouge1", "rougeL", "bleu", "error_rate", "chrf"]
    greek, chinese = ["καλημέρα κόσμε", "γεια"], ["你好世界", "再见 x"]
    assert remarks(names, ["good morning", "naïve"]) == []
    (of_rouge,) = remarks(names, greek)
    assert of_rouge.startswith("rouge1, rougeL: only the letters a to z and digits count, but 100% of")
    of_rouge, of_words = remarks(names, chinese)
    assert of_words.startswith("bleu, error_rate: words are separated at spaces, but 86% of the letters")
    assert METRICS["rouge1"].value(greek, greek) == 0  # why there is a remark
