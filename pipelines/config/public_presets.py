"""The presets of the public checkpoints, with pinned revisions."""

from typing import Any

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
    """The public Switch-Base checkpoints of 8 to 128 experts on C4, on one GPU with 32 GB or more, or several."""
    return {**switch_base(), "name": "switch-base-all", "teacher": {"checkpoints": _public(*_SWITCH_BASE)}}
