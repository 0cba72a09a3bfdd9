"""Recipes of students: plain values that presets and configs merge."""

from typing import Any

# Initialisation and training of students, with learning rates for the tiny models of the presets.
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {
        "student": {"ffn_init": "random"},
        "distill": {"hard_fraction": 0.75, "training": {"optimizer": "adafactor", "learning_rate": 0.02}},
    },
    "best": {
        "student": {"ffn_init": "regress", "calibration_examples": 4096},
        "distill": {"hard_fraction": 0.5, "training": {"optimizer": "muon", "learning_rate": 0.01}},
    },
}
CONTROL: dict[str, Any] = {"distill": {"hard_fraction": 1.0}}  # the paper's control: initialisation, no soft labels
