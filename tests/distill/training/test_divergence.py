import math

import pytest

from distill.training.divergence import TrainingDiverged, check_figures, check_losses


def test_figures_that_are_numbers_pass_and_others_are_named():
    assert check_figures({"eval/quality": -3.5, "load": 0.0}) == {"eval/quality": -3.5, "load": 0.0}
    with pytest.raises(TrainingDiverged, match="^eval/quality is nan$"):
        check_figures({"load": 1.0, "eval/quality": math.nan})


def test_losses_that_are_no_numbers_are_counted():
    check_losses([1.0, 0.0], "teacher e8")
    with pytest.raises(TrainingDiverged, match="teacher e8 cannot be measured: 2 of 3 evaluated examples"):
        check_losses([1.0, math.inf, math.nan], "teacher e8")
