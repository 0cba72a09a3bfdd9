"""Named configs, the smallest first. They are plain values that ``pipelines.config.run_config`` validates."""

from collections.abc import Callable
from typing import Any

from pipelines.config.public_presets import switch_base, switch_base_all
from pipelines.config.recipes import CONTROL, RECIPES
from pipelines.config.task_presets import (
    dates,
    demo,
    docstrings,
    names,
    names_long,
    names_small,
    names_wide,
    short_dates,
    student_sizes,
    student_steps,
    task_smoke,
    translate,
)


def smoke() -> dict[str, Any]:
    """All four stages in well under a minute. Shows that everything works, and nothing about quality."""
    training = {
        "batch_size": 8,
        "learning_rate": 5e-3,
        "warmup_steps": 2,
        "cooldown": 0.25,
        "log_every": 2,
        "checkpoint_every": 8,
    }
    return {
        "name": "smoke",
        "data": {
            "corpus": "stdlib",
            "vocabulary": 512,
            "input_length": 32,
            "train_tokens": 100_000,
            "test_fraction": 0.3,
            "test_examples": 32,
        },
        "model": {"d_model": 32, "d_ff": 64, "d_kv": 16, "num_heads": 2, "num_layers": 2},
        "teacher": {"experts": [2, 4], "training": {**training, "steps": 16}},
        "distill": {"training": {**training, "steps": 8}},
        "report": {"resamples": 1000},
    }


def text() -> dict[str, Any]:
    """A baseline, three teachers and their students on Python's standard library, in minutes on two cores.

    The training is so short that it says little about distillation. It is a start for a config of one's own.
    """
    training = {
        "batch_size": 16,
        "optimizer": "adafactor",
        "learning_rate": 0.06,
        "warmup_steps": 100,
        "cooldown": 0.2,
        "log_every": 20,
        "evaluate_every": 400,
        "checkpoint_every": 200,
    }
    return {
        "name": "text",
        "jobs": 2,
        "data": {
            "corpus": "stdlib",
            "vocabulary": 1024,
            "input_length": 128,
            "test_fraction": 0.15,
            "test_examples": 512,
        },
        "model": {"d_model": 64, "d_ff": 256, "d_kv": 32, "num_heads": 2, "num_layers": 2},
        "teacher": {"experts": [4, 8, 16], "training": {**training, "steps": 2200}},
        "distill": {
            "training": {**training, "steps": 200, "learning_rate": 0.01, "warmup_steps": 20, "evaluate_every": 50}
        },
    }


def _laptop() -> dict[str, Any]:
    """A comparison for two cores: tiny models with narrow FFNs, so that experts improve the quality.

    Teachers and baseline start from scratch and take the same number of steps. Students take a sixth of it. Evaluation
    batches are large, because experts drop more tokens in small batches. A quarter of the documents is held out, so
    that about 90 documents are resampled for the intervals.
    """
    training = {
        "batch_size": 128,
        "optimizer": "adafactor",
        "learning_rate": 0.06,
        "warmup_steps": 200,
        "cooldown": 0.5,
        "log_every": 100,
        "evaluate_every": 1000,
        "checkpoint_every": 1000,
    }
    return {
        "jobs": 2,
        "seeds": [0, 1, 2],
        "data": {
            "corpus": "stdlib",
            "vocabulary": 1024,
            "input_length": 32,
            "test_fraction": 0.15,
            "test_examples": 4096,
            "validation_fraction": 0.1,
        },
        "model": {"d_model": 64, "d_ff": 16, "d_kv": 16, "num_heads": 4, "num_layers": 2, "sparse_every": 1},
        "teacher": {
            "experts": [2, 4, 8, 16, 32],
            "capacity_factor_train": 2.0,
            "evaluation_batch_size": 512,
            "training": {**training, "steps": 6000},
        },
        "baseline": {"steps": 6000},
        "distill": {
            "training": {
                **training,
                "steps": 1000,
                "learning_rate": 0.02,
                "warmup_steps": 50,
                "cooldown": 1.0,
                "log_every": 25,
                "evaluate_every": 250,
                "checkpoint_every": 250,
            }
        },
    }


def table6() -> dict[str, Any]:
    """The techniques of the paper's table 6: soft labels alone, then also initialisation, then also hard labels.

    The student that starts from scratch gets the training settings of the baseline.
    """
    teacher = {**_laptop()["teacher"], "experts": [16]}
    return {
        **_laptop(),
        "name": "table6",
        "teacher": teacher,
        "variants": {
            "soft-labels": {
                "student": {"non_expert_init": "random"},
                "distill": {"hard_fraction": 0.0, "training": teacher["training"]},
            },
            "initialised": {"distill": {"hard_fraction": 0.0}},
            "hard-and-soft": {},
            "hard-labels": CONTROL,
        },
    }


def table7() -> dict[str, Any]:
    """The paper's table 7: its recipe with teachers of 2 to 32 experts, compared with its control."""
    return {**_laptop(), "name": "table7", "variants": {"paper": {}, "hard-labels": CONTROL}}


def best() -> dict[str, Any]:
    """The recipe that kept most and the paper's, each also with hard labels alone, on the teachers of table 7."""
    base, recipe, paper = _laptop(), RECIPES["best"], RECIPES["paper"]
    training = {**base["distill"]["training"], **recipe["distill"]["training"]}
    return {
        **base,
        "name": "best",
        "student": recipe["student"],
        "distill": {**recipe["distill"], "training": training},
        "variants": {
            "best": {},
            "best-hard-labels": CONTROL,
            "paper": paper,
            "hard-labels": {**paper, "distill": {**paper["distill"], **CONTROL["distill"]}},
        },
    }


def study() -> dict[str, Any]:
    """Changes to the paper's recipe, one at a time and then together, measured on the validation split.

    All students take the same number of steps on the same examples. Each variant is a change of the variant "paper".
    """
    return {**_studied(_laptop(), experts=16), "name": "study"}


def study_dates() -> dict[str, Any]:
    """The same changes on dates with a teacher of 64 experts, and the teacher's answers as targets."""
    base = _studied(short_dates(5000, 1250), experts=64)
    return {
        **base,
        "name": "study-dates",
        "variants": {**base["variants"], "answers": {"distill": {"targets": "teacher"}}},
    }


def _studied(base: dict[str, Any], experts: int) -> dict[str, Any]:
    """``base`` with one teacher, the paper's recipe, and a variant for each change."""
    paper = RECIPES["paper"]
    training = {**base["distill"]["training"], **paper["distill"]["training"]}
    return {
        **base,
        "data": {**base["data"], "validation_fraction": 0.1, "eval_split": "validation"},
        "teacher": {**base["teacher"], "experts": [experts]},
        "student": paper["student"],
        "distill": {**paper["distill"], "training": training},
        "variants": _changes(training["steps"]),
    }


def _changes(steps: int) -> dict[str, Any]:
    """Changes to the paper's recipe by name, for students of ``steps`` steps."""
    regress = RECIPES["best"]["student"]
    muon = {"training": RECIPES["best"]["distill"]["training"]}
    best = {"student": regress, "distill": RECIPES["best"]["distill"]}
    return {
        "paper": {},
        "hard-labels": CONTROL,
        **{f"ffn-{name}": {"student": {"ffn_init": name}} for name in ("mean", "usage", "best", "aligned")},
        **{f"ffn-{name}": {"student": {**regress, "ffn_init": name}} for name in ("select", "fit", "regress")},
        "half-soft": {"distill": {"hard_fraction": 0.5}},
        "soft-only": {"distill": {"hard_fraction": 0.0}},
        "temperature-2": {"distill": {"temperature": 2.0}},
        "soft-from-half": {"distill": {"soft_start": steps // 2}},
        "gentle": {"distill": {"training": {"learning_rate": 0.01}}},
        "muon": {"distill": muon},
        "muon-hard-labels": {"distill": {**muon, "hard_fraction": 1.0}},
        "muon-half-soft": {"distill": {**muon, "hard_fraction": 0.5}},
        "regress-muon": {"student": regress, "distill": muon},
        "regress-half-soft": {"student": regress, "distill": {"hard_fraction": 0.5}},
        "all-three": best,
        "all-three-hard-labels": {**best, "distill": {**best["distill"], **CONTROL["distill"]}},
        "all-three-soft-only": {**best, "distill": {**best["distill"], "hard_fraction": 0.0}},
    }


PRESETS: dict[str, Callable[[], dict[str, Any]]] = {
    "smoke": smoke,
    "task-smoke": task_smoke,
    "demo": demo,
    "text": text,
    "table6": table6,
    "table7": table7,
    "best": best,
    "study": study,
    "study-dates": study_dates,
    "dates": dates,
    "names": names,
    "names-small": names_small,
    "names-wide": names_wide,
    "names-long": names_long,
    "student-steps": student_steps,
    "student-sizes": student_sizes,
    "translate": translate,
    "docstrings": docstrings,
    "switch-base": switch_base,
    "switch-base-all": switch_base_all,
}
