"""The benchmark of learning rates at several widths, at tiny size. Measured qualities are not tested."""

from benchmarks import learning_rates
from benchmarks.learning_rates import Trial


def test_the_shape_is_scaled_with_the_width():
    config = learning_rates.load_config("names", [])
    narrow, same, wide = (learning_rates._of_width(config, width) for width in (32, 64, 128))
    assert same == config.model
    assert (narrow.d_ff * 2, narrow.num_heads * 2, narrow.d_kv) == (same.d_ff, same.num_heads, same.d_kv)
    assert (wide.d_ff, wide.num_heads, wide.d_kv) == (2 * same.d_ff, 2 * same.num_heads, same.d_kv)


def test_every_width_has_a_row_with_its_best_rate_marked():
    trials = [
        Trial("muon", width, rate, 600, 1000 * width, -2 - abs(rate - best))
        for width, best in ((32, 0.01), (64, 0.03))
        for rate in learning_rates.RATES["muon"]
    ]
    table = learning_rates._table(trials, 600)
    assert list(table.columns[1].cells) == ["32", "64"]
    assert [cell.startswith("[bold]") for cell in table.columns[4].cells] == [True, False]
    assert [cell.startswith("[bold]") for cell in table.columns[5].cells] == [False, True]


def test_a_trial_is_a_training_of_one_model(tmp_path):
    overrides = ["data.validation_fraction=0.2"]
    config = learning_rates.load_config("smoke", overrides)
    learning_rates.Workspace(config, "smoke", tmp_path, learning_rates.Console(quiet=True), kind="baseline")
    slow, fast = (
        learning_rates._trial("smoke", overrides, tmp_path, 12, "adafactor", 16, rate) for rate in (1e-5, 0.03)
    )
    assert fast.quality > slow.quality + 0.5  # the slow one has the quality of an untrained model
    assert slow.parameters == fast.parameters and (fast.optimizer, fast.width, fast.steps) == ("adafactor", 16, 12)
