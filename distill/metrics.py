"""Metrics of answers. Each is a score of statistics that are summed over examples, so that examples can be resampled.

The libraries of some metrics are optional; ``check_metrics`` says which one is missing. Every command imports this
module, so it imports numpy and these libraries only in the functions that use them.

Shapes: E examples, K statistics of a metric.
"""

import difflib
import importlib.util
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal

from distill.errors import UserError

if TYPE_CHECKING:
    import numpy as np

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_MANY = 0.1  # share of letters from which a metric is remarked on
_UNSPACED = ("CJK UNIFIED", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")


@dataclass(frozen=True)
class Metric:
    """A metric of answers against one reference each.

    The second statistic of an example is its size, for example 1 or its number of reference words. It does not depend
    on the answer.
    """

    better: Literal["higher", "lower"]
    unit: str
    per_example: Callable[[str, str], list[float]]  # the statistics of one answer and its reference, [K]
    score: "Callable[[np.ndarray], np.ndarray]"  # sums of statistics [..., K] -> the metric, [...]
    in_percent: bool = True  # how reports show the value
    library: tuple[str, str] | None = None  # its module, and its name for pip
    signature: Callable[[], str | None] = lambda: None  # settings and version of the library, for reports

    def statistics(self, answers: list[str], references: list[str]) -> "np.ndarray":
        """The statistics of each answer, float64 [E, K]. Their sums over any examples are the input of ``score``.

        Raises:
            ValueError: the numbers of answers and references differ, or are 0.
        """
        import numpy as np

        if len(answers) != len(references) or not answers:
            raise ValueError(f"{len(answers)} answers but {len(references)} references; each answer needs a reference")
        pairs = zip(answers, references, strict=True)
        return np.array([self.per_example(answer, reference) for answer, reference in pairs], dtype=np.float64)

    def value(self, answers: list[str], references: list[str]) -> float:
        """The metric of all answers together."""
        return float(self.score(self.statistics(answers, references).sum(axis=0)))


def check_metrics(names: list[str]) -> None:
    """Check that metrics are known and that their libraries are installed. Imports no library.

    Raises:
        UserError: a metric is unknown, or its library is missing.
    """
    for name in names:
        if name not in METRICS:
            close = difflib.get_close_matches(name, METRICS, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise UserError(f"metric {name!r:.60} is unknown; use one of {', '.join(METRICS)}{hint}")
        library = METRICS[name].library
        if library and importlib.util.find_spec(library[0]) is None:
            raise UserError(f"metric {name} needs {library[1]}; install it: pip install 'switch-distill[metrics]'")


def remarks(names: list[str], references: list[str]) -> list[str]:
    """Sentences on metrics that say little about these references; empty if all fit."""
    found = []
    if "accuracy" in names and not looks_like_labels(references):
        found.append(
            f"accuracy is meant for a small set of labels, but {len(set(references)):,} of {len(references):,} "
            "references differ; it counts the answers that are equal to the whole reference"
        )
    letters = Counter(letter for reference in references for letter in reference if letter.isalpha())

    def share(of: Callable[[str], bool]) -> float:
        return sum(count for letter, count in letters.items() if of(letter)) / max(letters.total(), 1)

    rouge = [name for name in names if name.startswith("rouge")]
    if rouge and (others := share(lambda letter: not letter.isascii())) > _MANY:
        found.append(
            f"{', '.join(rouge)}: only the letters a to z and digits count, but {others:.0%} of the letters of the "
            "references are others; prefer chrf"
        )
    by_word = [name for name in names if name in ("token_f1", "error_rate", "bleu")]
    if by_word and (others := share(_is_unspaced)) > _MANY:
        found.append(
            f"{', '.join(by_word)}: words are separated at spaces, but {others:.0%} of the letters of the references "
            "are of scripts without spaces between words; prefer chrf"
        )
    return found


def looks_like_labels(references: list[str]) -> bool:
    """Whether references are labels and not free text: on average, each different one occurs at least twice."""
    return 2 * len({reference.strip() for reference in references}) <= len(references)


def _is_unspaced(letter: str) -> bool:
    return unicodedata.name(letter, "").startswith(_UNSPACED)


def _ratio(sums: "np.ndarray") -> "np.ndarray":
    """The first statistic per unit of the second; 0 if there is no unit."""
    return sums[..., 0] / (sums[..., 1] + (sums[..., 1] == 0))


def _equal(answer: str, reference: str) -> list[float]:
    return [answer.strip() == reference.strip(), 1]


def _token_f1(answer: str, reference: str) -> list[float]:
    """F1 of the multisets of normalised words, as in SQuAD 2.0; two texts without words have 1."""
    found, wanted = _normalised_words(answer), _normalised_words(reference)
    if not found or not wanted:
        return [found == wanted, 1]
    return [2 * (Counter(found) & Counter(wanted)).total() / (len(found) + len(wanted)), 1]


def _normalised_words(text: str) -> list[str]:
    """Words in lower case, without ASCII punctuation and English articles: SQuAD's ``normalize_answer``."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _word_errors(answer: str, reference: str) -> list[float]:
    wanted = reference.split()
    return [edit_distance(answer.split(), wanted), len(wanted)]


def edit_distance(first: list[str], second: list[str]) -> int:
    """Levenshtein distance: insertions, deletions and substitutions of tokens that turn ``first`` into ``second``.

    One column of the dynamic program is two integers, whose bits are the differences between neighbouring cells
    (Myers 1999, doi:10.1145/316542.316550). Cell by cell, texts of 300 words take 75 times as long.
    """
    if not second:
        return len(first)
    places: dict[str, int] = {}
    for place, token in enumerate(second):
        places[token] = places.get(token, 0) | 1 << place
    everywhere, last = (1 << len(second)) - 1, 1 << (len(second) - 1)
    increases, decreases, distance = everywhere, 0, len(second)  # down the column, from one cell to the next
    for token in first:
        equal = places.get(token, 0)
        kept = (((equal & increases) + increases) ^ increases) | equal | decreases  # diagonal steps that cost nothing
        rises, falls = decreases | ~(kept | increases), kept & increases  # from the previous column
        distance += bool(rises & last) - bool(falls & last)
        rises, falls = rises << 1 | 1, falls << 1
        increases, decreases = (falls | ~(kept | rises)) & everywhere, kept & rises & everywhere
    return distance


def _rouge(kind: str, answer: str, reference: str) -> list[float]:
    return [_rouge_scorer(kind).score(reference, answer)[kind].fmeasure, 1]


@cache
def _rouge_scorer(kind: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([kind])


def _rouge_signature() -> str:
    from importlib.metadata import version

    return f"F1, mean over examples, no stemming, rouge-score {version('rouge-score')}"


@cache
def _sacrebleu(name: str) -> Any:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    metric = BLEU() if name == "bleu" else CHRF()
    metric.num_refs = 1  # the signature states it
    return metric


def _sacrebleu_statistics(name: str, answer: str, reference: str) -> list[float]:
    """The counts that sacrebleu's own significance tests sum; see ``_chrf`` and ``_bleu``."""
    return _sacrebleu(name)._extract_corpus_statistics([answer], [[reference]])[0]


def _sacrebleu_signature(name: str) -> str:
    return str(_sacrebleu(name).get_signature())


def _chrf(sums: "np.ndarray") -> "np.ndarray":
    """chrF (Popović 2015) with beta 2: the F score of mean precision and mean recall over orders of n-grams.

    Args:
        sums: n-grams of answers, of references and in both, for each order: [..., 3 * orders].
    """
    counts = sums.reshape(*sums.shape[:-1], -1, 3)
    answered, wanted, both = counts[..., 0], counts[..., 1], counts[..., 2]
    known = (answered > 0) & (wanted > 0)
    orders = known.sum(axis=-1) + ~known.any(axis=-1)
    precision = (known * both / (answered + ~known)).sum(axis=-1) / orders
    recall = (known * both / (wanted + ~known)).sum(axis=-1) / orders
    below = 4 * precision + recall
    return 100 * 5 * precision * recall / (below + (below == 0))


def _bleu(sums: "np.ndarray") -> "np.ndarray":
    """BLEU (Papineni et al. 2002) with sacrebleu's smoothing: the k-th order without a match counts 2**-k matches.

    Args:
        sums: length of answers, length of references, matching n-grams and n-grams of answers of 1 to 4 words:
            [..., 2 + 4 + 4].
    """
    import numpy as np

    length, wanted, matches, total = sums[..., 0], sums[..., 1], sums[..., 2:6], sums[..., 6:]
    smoothed = np.where(matches > 0, matches, 0.5 ** np.cumsum(matches == 0, axis=-1))
    possible = (matches > 0).any(axis=-1) & (total > 0).all(axis=-1)
    precisions = smoothed / np.where(total > 0, total, 1.0)
    brevity = np.minimum(1 - wanted / np.where(length > 0, length, 1.0), 0.0)
    return np.where(possible, 100 * np.exp(brevity + np.log(precisions).mean(axis=-1)), 0.0)


def _of_rouge(kind: str) -> Metric:
    return Metric(
        *("higher", "F1, 0 to 1", partial(_rouge, kind), _ratio),
        library=("rouge_score", "rouge-score"),
        signature=_rouge_signature,
    )


def _of_sacrebleu(name: str, score: "Callable[[np.ndarray], np.ndarray]") -> Metric:
    return Metric(
        *("higher", "0 to 100", partial(_sacrebleu_statistics, name), score),
        in_percent=False,
        library=("sacrebleu", "sacrebleu"),
        signature=partial(_sacrebleu_signature, name),
    )


# Answers and references are compared without white space at both ends in exact_match and accuracy, which are the same
# number. Users of labels look for the second name.
METRICS: dict[str, Metric] = {
    "exact_match": Metric("higher", "share of examples, 0 to 1", _equal, _ratio),
    "accuracy": Metric("higher", "share of examples, 0 to 1", _equal, _ratio),
    "token_f1": Metric("higher", "F1, 0 to 1", _token_f1, _ratio),
    "error_rate": Metric("lower", "edits per word of the references, from 0", _word_errors, _ratio),
    "rouge1": _of_rouge("rouge1"),
    "rouge2": _of_rouge("rouge2"),
    "rougeL": _of_rouge("rougeL"),
    "chrf": _of_sacrebleu("chrf", _chrf),
    "bleu": _of_sacrebleu("bleu", _bleu),
}
