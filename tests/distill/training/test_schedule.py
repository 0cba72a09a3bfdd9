import math

import numpy as np
import pytest

from distill.config import TrainingConfig
from distill.training.schedule import learning_rate, trunk_steps


def test_learning_rates():
    config = TrainingConfig(steps=100, learning_rate=1.0, warmup_steps=10)
    assert learning_rate(config, 0, 100) == pytest.approx(0.1)
    assert learning_rate(config, 9, 100) == pytest.approx(1.0)
    assert learning_rate(config, 40, 100) == pytest.approx(0.5)
    cooled = config.model_copy(update={"cooldown": 0.2})
    assert trunk_steps(cooled, 100) == 80
    assert [learning_rate(cooled, s, 100) for s in range(80)] == [learning_rate(cooled, s, 200) for s in range(80)]
    last = [learning_rate(cooled, s, 100) for s in range(79, 100)]
    assert last == sorted(last, reverse=True) and 0 < last[-1] < 0.02
    steps = [last[i] - last[i + 1] for i in range(1, 20)]
    assert max(steps) == pytest.approx(min(steps))
    straight = config.model_copy(update={"cooldown": 1.0})
    assert trunk_steps(straight, 100) == 10
    falling = [learning_rate(straight, s, 100) for s in range(9, 100)] + [0.0]
    assert np.diff(falling) == pytest.approx(-1 / 91)
    constant = cooled.model_copy(update={"schedule": "constant"})
    assert trunk_steps(constant, 100) == 80
    assert [learning_rate(constant, s, 100) for s in range(10, 80)] == [1.0] * 70
    falling = [1.0, *(learning_rate(constant, s, 100) for s in range(80, 100)), 0.0]
    assert np.diff(falling) == pytest.approx(-1 / 21)
    assert learning_rate(config.model_copy(update={"schedule": "constant"}), 99, 100) == 1.0
    cosine = config.model_copy(update={"schedule": "cosine"})
    assert learning_rate(cosine, 55, 100) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.5)))
    assert trunk_steps(cosine, 100) == 10
