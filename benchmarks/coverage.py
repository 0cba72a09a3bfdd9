"""The coverage of a report's intervals: ``python -m benchmarks.coverage``, which takes minutes.

Losses are simulated with random effects of documents, of seeds, of their interaction, and of examples. Intervals over
documents are compared with intervals over examples, which treat the examples of a document as independent.
"""

from typing import Annotated, NamedTuple

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from pipelines.reporting import fraction_kept
from pipelines.reporting.bootstrap import gain

GAIN, KEPT = 0.3, 0.4  # the truth: the gain in nats, and the fraction kept


class Case(NamedTuple):
    """Sizes, and standard deviations of the effects on a teacher's gain, in nats.

    The effects on a student have half these standard deviations, in addition to the share of the teacher's that it
    keeps.
    """

    documents: int
    seeds: int
    of_seed: float = 0.0
    of_document: float = 0.1
    of_both: float = 0.0
    of_example: float = 0.2
    ragged: bool = False  # very different numbers of examples per document, instead of 8


CASES = (
    *(Case(documents, 1, ragged=ragged) for documents in (10, 30, 100) for ragged in (False, True)),
    *(
        Case(documents, seeds, of_seed, of_both=0.02)
        for documents in (30, 100)
        for seeds in (2, 3, 5)
        for of_seed in (0.0, 0.02, 0.05)
    ),
    *(Case(30, seeds, 0.02, of_both=0.02, ragged=True) for seeds in (3, 5)),
)


def simulate(case: Case, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Simulate one report.

    Returns:
        The losses of baseline, teacher and student in nats per target token, each [seeds, examples], and the document
        of each example, [examples].
    """
    counts = np.full(case.documents, 8)
    if case.ragged:
        counts = np.maximum(1, np.exp(rng.normal(1.5, 0.8, case.documents)).round()).astype(int)
    documents = np.repeat(np.arange(case.documents), counts)
    shape = (case.seeds, len(documents))

    def effects(scale: float) -> np.ndarray:
        of_document = rng.normal(0, case.of_document, case.documents)[documents]
        of_both = rng.normal(0, case.of_both, (case.seeds, case.documents))[:, documents]
        of_seed = rng.normal(0, case.of_seed, (case.seeds, 1))
        return scale * (of_document + of_seed + of_both) + rng.normal(0, case.of_example, shape)

    teacher_gain = GAIN + effects(1.0)
    student_gain = KEPT * teacher_gain + effects(0.5)
    difficulty = rng.normal(4, 1, len(documents))
    return np.broadcast_to(difficulty, shape), difficulty - teacher_gain, difficulty - student_gain, documents


def coverage(case: Case, repeats: int, resamples: int = 400) -> dict[str, tuple[float, float]]:
    """Coverage and mean length of 95 % intervals.

    Args:
        repeats: number of simulated reports.
        resamples: number of bootstrap samples of each interval.

    Returns:
        For "gain", "kept" and "kept, by examples": the share of intervals that cover the truth, in [0, 1], and their
        mean length, in nats for a gain. Reports without an interval of the fraction are excluded.
    """
    rng = np.random.default_rng(0)
    covered: dict[str, list[bool]] = {}
    lengths: dict[str, list[float]] = {}
    for _ in range(repeats):
        baseline, teacher, student, documents = simulate(case, rng)
        options = {"resamples": resamples, "documents": documents}
        intervals = {
            "gain": (gain(baseline, teacher, **options)[1], GAIN),
            "kept": (fraction_kept(baseline, teacher, student, **options)[1], KEPT),
            "kept, by examples": (fraction_kept(baseline, teacher, student, resamples=resamples)[1], KEPT),
        }
        for name, (interval, truth) in intervals.items():
            if interval is not None:
                covered.setdefault(name, []).append(interval[0] <= truth <= interval[1])
                lengths.setdefault(name, []).append(interval[1] - interval[0])
    return {name: (float(np.mean(covered[name])), float(np.mean(lengths[name]))) for name in covered}


def main(repeats: Annotated[int, typer.Option(min=10, help="Number of simulated reports per row.")] = 1000) -> None:
    """Print the coverage of 95 % intervals for different numbers of documents, examples and seeds."""
    table = Table(title=f"Coverage (and mean length) of 95 % intervals in {repeats:,} simulated reports")
    for name in ("documents", "examples of each", "seeds", "effect of seeds", "gain", "kept", "kept, by examples"):
        table.add_column(name, justify="right")
    for case in CASES:
        cells = [f"{share:.1%} ({length:.2f})" for share, length in coverage(case, repeats).values()]
        examples = "very uneven" if case.ragged else "8"
        table.add_row(str(case.documents), examples, str(case.seeds), f"{case.of_seed:.2f}", *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
