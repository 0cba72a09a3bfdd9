"""Stage 4: the fraction of each teacher's gain that its student keeps (section 4.2, tables 6 and 7)."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from distill.config import TrainingConfig
from distill.errors import UserError
from distill.files import write_bytes, write_json, write_text
from distill.flops import forward_flops
from distill.prepare import example_lengths
from pipelines.plan import baseline_training
from pipelines.plot import plot_report
from pipelines.stage import Finished, of_kind, read_losses
from pipelines.stage_run import Outcome, StageRun
from pipelines.table import markdown

FILES = ("report.json", "report.md", "fraction_kept.png")
Interval = tuple[float, float]


def fraction_kept(
    baseline_losses: np.ndarray,
    teacher_losses: np.ndarray,
    student_losses: np.ndarray,
    *,
    resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float | None, Interval | None]:
    """(Q_student - Q_baseline) / (Q_teacher - Q_baseline), with its paired bootstrap interval.

    Args:
        baseline_losses, teacher_losses, student_losses: nats per target token of each validation example,
            [examples] or [seeds, examples], the same examples in the same order for all three.
        resamples: bootstrap samples, over examples and over seeds where there are several.
        seed: of the bootstrap.
        confidence: of the interval, in (0, 1).

    Returns:
        The fraction (1.0 keeps all of the gain) and (low, high); None and None where the interval of the gain
        reaches 0, because a fraction of nothing says nothing. Neither is ever infinite or NaN.

    Raises:
        ValueError: the three do not have the same shape.
    """
    losses = {"baseline": baseline_losses, "teacher": teacher_losses, "student": student_losses}
    quality, sampled = _bootstrap(losses, resamples=resamples, seed=seed)
    gains = sampled["teacher"] - sampled["baseline"]
    if _interval(gains, confidence)[0] <= 0:
        return None, None
    fraction = (quality["student"] - quality["baseline"]) / (quality["teacher"] - quality["baseline"])
    some = gains != 0  # where a resample has no gain, it has no fraction
    return fraction, _interval((sampled["student"] - sampled["baseline"])[some] / gains[some], confidence)


def gain(
    baseline_losses: np.ndarray, teacher_losses: np.ndarray, *, resamples: int = 10_000, seed: int = 0
) -> tuple[float, Interval]:
    """Q_teacher - Q_baseline in nats per target token, with its 95 % paired bootstrap interval."""
    losses = {"baseline": baseline_losses, "teacher": teacher_losses}
    quality, sampled = _bootstrap(losses, resamples=resamples, seed=seed)
    return quality["teacher"] - quality["baseline"], _interval(sampled["teacher"] - sampled["baseline"], 0.95)


def compute(run: StageRun) -> Outcome:
    """Write report.json, report.md and the plot.

    Raises:
        UserError: a student has not the shape of the baseline, so that their difference is not the teacher's doing.
    """
    _check_same_shape(run)
    report = build_report(run)
    if run.is_main_process:
        write_json(run.directory / "report.json", report)
        write_text(run.directory / "report.md", markdown(report))
        plot_report(report, run.directory / "fraction_kept.png")
    for row in report["ratios"]:
        if row["fraction_kept"] is not None:
            name = "_".join(filter(None, ("kept_by_experts", row["variant"])))
            run.log_curve(row["experts"], {name: row["fraction_kept"]})
    kept = {
        "_".join(filter(None, ("fraction_kept", row["ratio"], row["variant"]))): row["fraction_kept"]
        for row in report["ratios"]
    }
    return Outcome({name: value for name, value in kept.items() if value is not None}, {})


def _check_same_shape(run: StageRun) -> None:
    keys = (
        "vocab_size",
        "d_model",
        "d_ff",
        "d_kv",
        "num_heads",
        "num_layers",
        "num_decoder_layers",
        "feed_forward_proj",
    )
    baseline = json.loads(_of_kind(run, "baseline")[0].read("model/config.json").read_text())
    for ratio in run.config.teacher.ratios:
        first = next(iter(run.config.variants), None)
        student = json.loads(_of_kind(run, "distill", ratio, first)[0].read("model/config.json").read_text())
        if differing := [f"{key} {student[key]} and {baseline[key]}" for key in keys if student[key] != baseline[key]]:
            raise UserError(
                f"student {ratio} and the baseline differ in {', '.join(differing)}; set baseline.checkpoint to "
                "a T5 of the student's shape, or compare teachers of one shape only"
            )


def publish(finished: Finished, workdir: Path) -> dict[str, Any]:
    """Copy a finished report to the top of the work directory; return report.json."""
    for name in FILES:
        write_bytes(workdir / name, finished.read(name).read_bytes())
    return json.loads((workdir / "report.json").read_text())


def build_report(run: StageRun) -> dict[str, Any]:
    """report.json: both baselines, a row per ratio and variant, and the data."""
    config = run.config
    baselines = _of_kind(run, "baseline")
    losses = {name: _losses(baselines, name) for name in ("baseline_losses", "long_baseline_losses")}
    facts, training = baselines[0].facts, baseline_training(config)
    return {
        "baseline": {
            "quality": -float(losses["baseline_losses"].mean()),
            "parameters": facts["parameters"],
            "steps": facts["steps"],
            **_spent(run, baselines[0], training, facts["steps"]),
        },
        "long_baseline": {
            "quality": -float(losses["long_baseline_losses"].mean()),
            "steps": facts["long_steps"],
            **_spent(run, baselines[0], training, facts["long_steps"]),
        },
        "ratios": [
            _row(run, ratio, variant, losses)
            for ratio in config.teacher.ratios
            for variant in config.variants or [None]
        ],
        "data": {
            "name": run.data.name,
            "digest": run.data.digest,
            "train_tokens": run.data.train_tokens,
            "validation_examples": config.data.validation_examples,
        },
        "fingerprint": run.stage.fingerprint,
    }


def _row(run: StageRun, ratio: str, variant: str | None, baselines: dict[str, np.ndarray]) -> dict[str, Any]:
    teachers, students = _of_kind(run, "teacher", ratio), _of_kind(run, "distill", ratio, variant)
    student = _losses(students)
    teacher = np.broadcast_to(_losses(teachers), student.shape)  # a loaded one is the same for every seed
    resamples = {"resamples": run.config.report.resamples}
    row: dict[str, Any] = {
        "ratio": ratio,
        "variant": variant,
        "experts": run.config.teacher.ratios[ratio],
        "teacher_parameters": teachers[0].facts["parameters"],
        "student_parameters": students[0].facts["parameters"],
        "compression": 1 - students[0].facts["parameters"] / teachers[0].facts["parameters"],
        "teacher_quality": -float(teacher.mean()),
        "student_quality": -float(student.mean()),
        **_seen(run, ratio, variant),
        "seeds": run.config.seeds,
        "teacher_run_id": teachers[0].run_id or None,  # MLflow has not got it yet
        "student_run_id": students[0].run_id or None,
        "student_model_uri": students[0].model_uri,
    }
    for suffix, key in (("", "baseline_losses"), ("_long", "long_baseline_losses")):
        row[f"gain{suffix}"], interval = gain(baselines[key], teacher, **resamples)
        row[f"gain{suffix}_interval"] = list(interval)
        fraction, bounds = fraction_kept(baselines[key], teacher, student, **resamples)
        row[f"fraction_kept{suffix}"] = fraction
        row[f"fraction{suffix}_interval"] = list(bounds) if bounds else None
        if fraction is None:
            row[f"fraction{suffix}_undefined"] = (
                f"the teacher's gain is {row[f'gain{suffix}']:.4f} nats, and its interval "
                f"[{interval[0]:.4f}, {interval[1]:.4f}] reaches 0"
            )
        gains, kept = ((baselines[key] - losses).mean(axis=1) for losses in (teacher, student))
        row[f"fraction_kept{suffix}_by_seed"] = None if fraction is None or not gains.all() else (kept / gains).tolist()
    return row


def _seen(run: StageRun, ratio: str, variant: str | None) -> dict[str, Any]:
    """Tokens and operations of each model's training; for a student those of its own steps, its teacher's part too."""
    teacher, student = _of_kind(run, "teacher", ratio)[0], _of_kind(run, "distill", ratio, variant)[0]
    settings = run.config.of_variant(variant).distill
    taught, learnt = run.config.teacher.training, settings.training
    trained_here = ratio not in run.config.teacher.checkpoints
    spent = _spent(run, teacher, taught) if trained_here else {"tokens": None, "flops": None}
    own = _spent(run, student, learnt)
    listens = _spent(run, teacher, learnt)["flops"] / 3 if settings.runs_teacher else 0.0
    return {
        "teacher_steps": taught.steps if trained_here else None,
        "teacher_tokens": spent["tokens"],
        "teacher_flops": spent["flops"],
        "student_steps": learnt.steps,
        "student_tokens": own["tokens"],
        "student_flops": own["flops"] + listens,
    }


def _spent(run: StageRun, model: Finished, training: TrainingConfig, steps: int | None = None) -> dict[str, float]:
    """Tokens, inputs and targets, and floating-point operations of a model's training."""
    lengths = example_lengths(run.data, run.config.data)[1]
    examples = (steps or training.steps) * training.batch_size
    shape = json.loads(model.read("model/config.json").read_text())
    forward = forward_flops(shape, lengths.inputs, lengths.targets)
    return {"tokens": examples * (lengths.inputs + lengths.targets), "flops": 3 * examples * forward}


def _of_kind(run: StageRun, kind: str, ratio: str | None = None, variant: str | None = None) -> list[Finished]:
    return of_kind(run.stage, run.inputs, kind, ratio, variant)


def _losses(finished: list[Finished], name: str = "validation_losses") -> np.ndarray:
    losses = np.array([read_losses(one, name) for one in finished])
    if not np.isfinite(losses).all():
        one = finished[int(np.argmin(np.isfinite(losses).all(axis=1)))]
        raise UserError(f"{one.title} has a loss that is no number in {one.directory / name}.json; make it again")
    return losses


def _bootstrap(
    losses: dict[str, np.ndarray], *, resamples: int, seed: int
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Quality of each model, and its quality in every resample [resamples]: the same examples and seeds for all."""
    arrays = {name: np.atleast_2d(np.asarray(values, dtype=np.float64)) for name, values in losses.items()}
    shapes = {values.shape for values in arrays.values()}
    if len(shapes) != 1:
        raise ValueError(f"losses must have the same seeds and examples, not shapes {sorted(shapes)}")
    seeds, examples = shapes.pop()
    example_weights, seed_weights = _weights(examples, seeds, resamples, seed)
    sampled = {name: -((example_weights @ values.T) * seed_weights).sum(axis=1) for name, values in arrays.items()}
    return {name: -float(values.mean()) for name, values in arrays.items()}, sampled


@lru_cache(maxsize=1)
def _weights(examples: int, seeds: int, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """What each example [resamples, examples] and each seed [resamples, seeds] counts in each resample."""
    rng = np.random.default_rng(seed)
    of_examples = rng.multinomial(examples, np.full(examples, 1 / examples), size=resamples) / examples
    return of_examples, rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds


def _interval(samples: np.ndarray, confidence: float) -> Interval:
    low, high = np.quantile(samples, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
