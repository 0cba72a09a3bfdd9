"""Named configs, the smallest first. They are plain values that ``pipelines.config.run_config`` validates."""

from collections.abc import Callable
from typing import Any

# Initialisation and training of students, with learning rates for the tiny models of the presets below.
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


def demo() -> dict[str, Any]:
    """A baseline, three teachers and their students on Python's standard library, in minutes on two cores."""
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
        "name": "demo",
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
    regress = RECIPES["best"]["student"]
    muon = {"training": RECIPES["best"]["distill"]["training"]}
    best = {"student": regress, "distill": RECIPES["best"]["distill"]}
    variants: dict[str, dict[str, Any]] = {
        "paper": {},
        "hard-labels": CONTROL,
        **{f"ffn-{name}": {"student": {"ffn_init": name}} for name in ("mean", "usage", "best", "svd", "aligned")},
        **{f"ffn-{name}": {"student": {**regress, "ffn_init": name}} for name in ("select", "fit", "regress")},
        "mixture": {"distill": {"teacher_routing": "mixture"}},
        "two-draws": {"distill": {"teacher_routing": "sampled", "num_sampled_experts": 2}},
        "match-hidden": {"distill": {"match": ["hidden"]}},
        "match-ffn": {"distill": {"match": ["ffn"]}},
        "match-ffn-fading": {"distill": {"match": ["ffn"], "match_steps": 500}},
        "half-soft": {"distill": {"hard_fraction": 0.5}},
        "soft-only": {"distill": {"hard_fraction": 0.0}},
        "temperature-2": {"distill": {"temperature": 2.0}},
        "soft-from-half": {"distill": {"soft_start": 500}},
        "gentle": {"distill": {"training": {"learning_rate": 0.01}}},
        "muon": {"distill": muon},
        "muon-hard-labels": {"distill": {**muon, "hard_fraction": 1.0}},
        "muon-half-soft": {"distill": {**muon, "hard_fraction": 0.5}},
        "regress-muon": {"student": regress, "distill": muon},
        "regress-half-soft": {"student": regress, "distill": {"hard_fraction": 0.5}},
        "all-three": best,
        "all-three-hard-labels": {**best, "distill": {**best["distill"], **CONTROL["distill"]}},
        "all-three-soft-only": {**best, "distill": {**best["distill"], "hard_fraction": 0.0}},
        "all-three-mixture": {**best, "distill": {**best["distill"], "teacher_routing": "mixture"}},
        "all-three-match-hidden": {**best, "distill": {**best["distill"], "match": ["hidden"], "match_weight": 0.3}},
    }
    base = _laptop()
    return {
        **base,
        "name": "study",
        "data": {**base["data"], "eval_split": "validation"},
        "teacher": {**base["teacher"], "experts": [16]},
        "variants": variants,
    }


# Number of experts -> commit of google/switch-base-N on the hub.
_SWITCH_BASE = {
    8: "92fe2d22b024d9937146fe097ba3d3a7ba146e1b",
    16: "0ef7d88ed50ec5f2cfdc019e81cef04d19700f8f",
    32: "2018338b8dad760fa7a35a754d532486ef3942f9",
    64: "b9fae596288a4a26289db5b28ab014b93fe5b9a9",
    128: "86c815ec05361a33a8b49fc717277da9c0a4e711",
}


def _public(*experts: int) -> dict[str, str]:
    """Ratio -> pinned name of a public checkpoint."""
    return {f"e{number}": f"google/switch-base-{number}@{_SWITCH_BASE[number]}" for number in experts}


def switch_base() -> dict[str, Any]:
    """The public Switch-Base-8 on C4, as in section 4.2 of the paper, on one GPU with 16 GB or more.

    The teacher runs at each step. It would make as many passes to cache labels, because no example is repeated and
    there is one student.
    """
    return {
        "name": "switch-base",
        "precision": "bfloat16",  # float16 overflows in a Switch model
        "data": {
            "corpus": "hf:allenai/c4@1588ec454efa1a09f29cd18ddd04fe05fc8653a2:en",
            "tokenizer": _public(8)["e8"],
            "input_length": 512,
            "test_fraction": 0.003,
            "test_examples": 2048,
            "train_tokens": 1_000_000_000,
        },
        "teacher": {"checkpoints": _public(8)},
        "baseline": {"checkpoint": "google-t5/t5-base@a9723ea7f1b39c1eae772870f3b547bf6ef7e6c1"},
        "distill": {
            "soft_labels": "online",
            "training": {
                "steps": 10_000,
                "batch_size": 128,
                "micro_batch_size": 16,
                "optimizer": "adafactor",
                "learning_rate": 1e-3,
                "warmup_steps": 1000,
                "checkpoint_every": 1000,
                "evaluate_every": 1000,
            },
        },
    }


def switch_base_all() -> dict[str, Any]:
    """The public Switch-Base checkpoints of 8 to 128 experts on C4, on one GPU with 80 GB, or several."""
    return {**switch_base(), "name": "switch-base-all", "teacher": {"checkpoints": _public(*_SWITCH_BASE)}}


PRESETS: dict[str, Callable[[], dict[str, Any]]] = {
    "smoke": smoke,
    "demo": demo,
    "table6": table6,
    "table7": table7,
    "best": best,
    "study": study,
    "switch-base": switch_base,
    "switch-base-all": switch_base_all,
}
