"""The benchmark of sharded training, on a tiny model. Measured memory is not tested."""

import pytest

from benchmarks import sharding


@pytest.mark.slow
def test_all_forms_have_equal_losses(capsys):
    sharding.main(tiny=True)
    printed = capsys.readouterr().out
    assert all(printed.count(form) == 1 for form in sharding.FORMS)
    assert "the losses are equal up to rounding" in printed
