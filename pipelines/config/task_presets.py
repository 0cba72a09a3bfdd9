"""The presets of tasks. They are plain values, like those of ``pipelines.config.presets``."""

from typing import Any

from pipelines.config.recipes import CONTROL, RECIPES

EIGHT_HEADS = {"num_heads": 8, "d_kv": 8}  # with two heads, results differ more by seed than by model


def task_smoke() -> dict[str, Any]:
    """All four stages on a task in well under a minute. Shows that everything works, and nothing about quality."""
    training = {"batch_size": 8, "learning_rate": 5e-3, "warmup_steps": 2, "log_every": 2, "checkpoint_every": 8}
    return {
        "name": "task-smoke",
        "data": {"vocabulary": 512, "train_tokens": 40_000, "test_fraction": 0.3, "test_examples": 64},
        "task": {
            "examples": "stdlib:docstrings",
            "metrics": ["exact_match", "token_f1"],
            "max_input": 64,
            "max_target": 32,
        },
        "model": {"d_model": 32, "d_ff": 64, "d_kv": 16, "num_heads": 2, "num_layers": 2},
        "teacher": {"experts": [2, 4], "training": {**training, "steps": 16}},
        "distill": {"training": {**training, "steps": 8}},
        "report": {"resamples": 1000},
    }


def demo() -> dict[str, Any]:
    """Dates in 282 locales, in minutes on two cores: two teachers, and two students of each, of the baseline's size."""
    base = short_dates(3000, 1500)
    return {
        **base,
        "name": "demo",
        "precision": "float32",  # so that figures do not depend on whether the processor has bfloat16
        "model": {**base["model"], **EIGHT_HEADS, "d_ff": 256},
        "teacher": {**base["teacher"], "experts": [8, 16]},
        "variants": {"best": {}, "paper": RECIPES["paper"]},
    }


def short_dates(steps: int, student_steps: int) -> dict[str, Any]:
    """The preset dates with one seed, ``steps`` of baseline and teachers, and ``student_steps`` of students."""
    base = dates()
    teacher, training = base["teacher"], base["distill"]["training"]
    return {
        **base,
        "seeds": [0],
        "teacher": {**teacher, "training": {**teacher["training"], "steps": steps}},
        "baseline": {"steps": steps},
        "distill": {**base["distill"], "training": {**training, "steps": student_steps, "evaluate_every": 250}},
    }


def dates() -> dict[str, Any]:
    """Dates in 282 locales: teachers that gain much, and students with wider FFNs and as many steps as teachers."""
    training = {
        "batch_size": 64,
        "optimizer": "adafactor",
        "learning_rate": 0.04,
        "warmup_steps": 200,
        "cooldown": 1.0,
        "log_every": 50,
        "evaluate_every": 1000,
        "checkpoint_every": 500,
    }
    recipe = RECIPES["best"]
    student = {
        **training,
        **recipe["distill"]["training"],
        "learning_rate": 0.005,
        "schedule": "constant",
        "warmup_steps": 50,
        "cooldown": 0.5,
    }
    wide = {"student": {"d_ff": 256}, "distill": {"balance": "by-token"}}
    return {
        "name": "dates",
        "jobs": 2,
        "seeds": [0, 1, 2],
        "data": {"vocabulary": 1024, "test_fraction": 0.25, "test_examples": 4096},
        "task": {"examples": "babel:dates", "metrics": ["exact_match"], "max_input": 24, "max_target": 32},
        "model": {"d_model": 32, "d_ff": 64, "d_kv": 16, "num_heads": 2, "num_layers": 1, "sparse_every": 1},
        "teacher": {
            "experts": [64, 96, 128, 192, 256],
            "capacity_factor_train": 2.0,
            "evaluation_batch_size": 512,
            "training": {**training, "steps": 10_000},
        },
        "baseline": {"steps": 10_000},
        "student": recipe["student"],
        "distill": {**recipe["distill"], "training": {**student, "steps": 10_000}},
        "variants": {"wide-by-token": wide, "paper": RECIPES["paper"]},
    }


def _on_task(
    task: dict[str, Any],
    steps: int,
    student_steps: int,
    learning_rate: float,
    *,
    batch_size: int = 256,
    cooldown: float = 0.5,
) -> dict[str, Any]:
    """A comparison on a task for two cores, on short pairs; the baseline takes the teachers' steps."""
    training = {
        "batch_size": batch_size,
        "optimizer": "adafactor",
        "learning_rate": learning_rate,
        "warmup_steps": 200,
        "cooldown": cooldown,
        "log_every": 100,
        "evaluate_every": 500,
        "checkpoint_every": 500,
    }
    recipe, paper = RECIPES["best"], RECIPES["paper"]
    student = {
        **training,
        **recipe["distill"]["training"],
        "steps": student_steps,
        "warmup_steps": 50,
        "cooldown": 1.0,
        "log_every": 25,
        "evaluate_every": 200,
    }
    return {
        "jobs": 2,
        "data": {"vocabulary": 1024, "test_fraction": 0.1, "validation_fraction": 0.05, "test_examples": 4096},
        "task": task,
        "model": {"d_model": 64, "d_ff": 32, "d_kv": 16, "num_heads": 4, "num_layers": 2, "sparse_every": 1},
        "teacher": {
            "experts": [4, 16, 64],
            "capacity_factor_train": 2.0,
            "evaluation_batch_size": 512,
            "training": {**training, "steps": steps},
        },
        "baseline": {"steps": steps},
        "student": recipe["student"],
        "distill": {**recipe["distill"], "training": student},
        "variants": {
            "best": {},
            "best-hard-labels": CONTROL,
            "paper": paper,
            "hard-labels": {**paper, "distill": {**paper["distill"], **CONTROL["distill"]}},
        },
    }


def names() -> dict[str, Any]:
    """Names of languages, territories, scripts and currencies in the locales of CLDR, in hours on two cores.

    With small batches and a learning rate that falls from the end of the warm-up on, the dense model reaches the same
    quality with a third of the tokens of batches of 256. With 64, 128 and 256 experts, students have 9, 4 and 2 % of
    the teacher's parameters.
    """
    task = {
        "examples": "babel:names",
        "metrics": ["exact_match", "chrf"],
        "max_input": 32,
        "max_target": 24,
    }
    base = _on_task(task, 6000, 1800, 0.03, batch_size=64, cooldown=1.0)
    return {
        **base,
        "name": "names",
        "seeds": [0, 1, 2],
        "model": {**base["model"], "d_ff": 64},
        "teacher": {
            **base["teacher"],
            "experts": [16, 64, 128, 256],
            "training": {**base["teacher"]["training"], "warmup_steps": 300},
        },
        "distill": {**base["distill"], "training": {**base["distill"]["training"], "learning_rate": 0.005}},
    }


def names_small() -> dict[str, Any]:
    """The data of names with the models of dates and eight heads: dense models nearly level off in 16,000 steps."""
    base = dates()
    teacher = base["teacher"]
    student = {**base["distill"]["training"], "schedule": "inverse_sqrt", "cooldown": 1.0, "steps": 8000}
    return {
        **base,
        "name": "names-small",
        "precision": "float32",  # a teacher of 128 experts trains in 15 % less time than in bfloat16
        "data": names()["data"],
        "task": names()["task"],
        "model": {**base["model"], **EIGHT_HEADS},
        "teacher": {**teacher, "experts": [64, 128], "training": {**teacher["training"], "steps": 16_000}},
        "baseline": {"steps": 16_000},
        "distill": {**base["distill"], "training": student},
    }


def names_wide() -> dict[str, Any]:
    """The data of names with FFNs and experts four times as wide; students have the teachers' settings of training."""
    base = names_small()
    return {
        **base,
        "name": "names-wide",
        "model": {**base["model"], "d_ff": 256},
        "teacher": {**base["teacher"], "experts": [32, 64]},
        "distill": {"training": base["teacher"]["training"]},
        "variants": {"regress-by-token": {"distill": {"balance": "by-token"}}, "paper": RECIPES["paper"]},
    }


def names_long() -> dict[str, Any]:
    """The preset names-wide with one teacher and twice the steps for every model."""
    base = names_wide()
    training = {**base["distill"]["training"], "steps": 32_000}
    return {
        **base,
        "name": "names-long",
        "teacher": {**base["teacher"], "experts": [64], "training": training},
        "baseline": {"steps": training["steps"]},
        "distill": {"training": training},
        "variants": {"regress-by-token": base["variants"]["regress-by-token"]},
    }


def student_steps() -> dict[str, Any]:
    """Quality against the student's steps, 250 to 16,000, on names; the baselines are of the student's width."""
    base = names_small()
    wide = base["variants"]["wide-by-token"]
    training = {**base["distill"]["training"], "schedule": "constant", "cooldown": 0.5, "steps": 16_000}
    lengths = {"lengths": [250 * 2**place for place in range(6)], "training": {**training, "evaluate_every": None}}
    return {
        **base,
        "name": "student-steps",
        "teacher": {**base["teacher"], "experts": [64]},
        "student": {**base["student"], **wide["student"]},
        "distill": {**base["distill"], **wide["distill"], **lengths},
        "baseline": {**base["baseline"], **wide["student"]},
        "variants": {},
    }


def student_sizes() -> dict[str, Any]:
    """Students of five sizes of one teacher on the data of dates: wider FFNs, and one of two decoder layers."""
    base = demo()
    width = base["model"]["d_ff"]
    return {
        **base,
        "name": "student-sizes",
        "model": {**base["model"], "num_layers": 2},
        "teacher": {**base["teacher"], "experts": [16]},
        "distill": {**base["distill"], "balance": "by-token"},
        "variants": {
            "x1": {},
            "x2": {"student": {"d_ff": 2 * width}},
            "x4": {"student": {"d_ff": 4 * width}},
            "one-decoder-layer": {"student": {"num_decoder_layers": 1}},
            "x4-one-decoder-layer": {"student": {"d_ff": 4 * width, "num_decoder_layers": 1}},
        },
    }


def translate() -> dict[str, Any]:
    """Django's messages in about 98 languages, with a group per language, on two cores."""
    task = {"examples": "django:messages", "metrics": ["chrf"], "max_input": 64, "max_target": 64}
    base = _on_task(task, 3000, 750, 0.03)
    return {**base, "name": "translate", "teacher": {**base["teacher"], "experts": [16]}}


def docstrings() -> dict[str, Any]:
    """Fine-tuning of the models of the preset best on docstrings, with the dropouts of the paper's table 4."""
    task = {
        "examples": "stdlib:docstrings",
        "metrics": ["chrf", "rougeL", "exact_match"],
        "max_input": 128,
        "max_target": 32,
    }
    base = _on_task(task, 600, 300, 0.01)
    del base["model"]  # that of the pre-training
    short = {"batch_size": 64, "warmup_steps": 50, "evaluate_every": 100}
    teacher = {
        **base["teacher"],
        "experts": [16],
        "expert_dropout": 0.4,
        "training": {**base["teacher"]["training"], **short, "dropout": 0.1},
    }
    student = {**base["distill"]["training"], **short, "dropout": 0.1}
    return {
        **base,
        "name": "docstrings",
        "pretrained": "best",
        "data": {"test_fraction": 0.15, "validation_fraction": 0.1, "test_examples": 1024},
        "teacher": teacher,
        "baseline": {"steps": 600},
        "student": {**base["student"], "calibration_examples": 2048},  # of 5,111 training examples
        "distill": {**base["distill"], "training": student},
    }
