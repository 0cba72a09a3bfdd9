"""Resamples: every figure of a report has the same ones."""

import numpy as np

from pipelines.reporting.comparison import Figure, Models, compared, kept_by_seed


def test_the_rows_of_a_report_draw_the_resamples_once(monkeypatch):
    """Two draws: those of all seeds, and those of one seed for the fraction of each seed."""
    made, original = [], np.random.default_rng
    rng = original(0)
    baseline = rng.normal(4.0, 1.0, (2, 60))
    teacher, student = (baseline - gain + rng.normal(0, 0.05, (2, 60)) for gain in (0.4, 0.2))
    sums = Figure(Models({"": baseline}, {"e4": teacher}, {("e4", None): student}), np.arange(60)).sums()
    monkeypatch.setattr("numpy.random.default_rng", lambda seed: made.append(seed) or original(seed))
    rows = [(compared(sums, "e4", None, 123, against=("",)), kept_by_seed(sums, "e4", None, "", 123)) for _ in range(3)]
    assert len(made) == 2
    assert rows[0] == rows[1] == rows[2] and rows[0][1] is not None
