"""Stage 4: the fraction of each teacher's gain that its student keeps (section 4.2, tables 6 and 7)."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from distill.config import TrainingConfig
from distill.errors import UserError
from distill.files import write_bytes, write_json, write_text
from distill.flops import forward_flops
from distill.prepare import example_lengths
from pipelines.bootstrap import average_kept, difference, fraction_kept, gain
from pipelines.plan import baseline_training
from pipelines.plot import plot_report
from pipelines.stage import Finished, of_kind, read_losses
from pipelines.stage_run import Outcome, StageRun
from pipelines.table import comma_separated, markdown

FILES = ("report.json", "report.md", "report.csv", "fraction_kept.png")


def compute(run: StageRun) -> Outcome:
    """Write the report's files.

    Raises:
        UserError: a student has not the shape of the baseline, so that their difference is not the teacher's doing.
    """
    _check_same_shape(run)
    report = build_report(run)
    if run.is_main_process:
        write_json(run.directory / "report.json", report)
        write_text(run.directory / "report.md", markdown(report))
        write_text(run.directory / "report.csv", comma_separated(report))
        plot_report(report, run.directory / "fraction_kept.png")
    for row in report["ratios"]:
        if row["fraction_kept"] is not None:
            name = "_".join(filter(None, ("kept_by_experts", row["variant"])))
            run.log_curve(row["experts"], {name: row["fraction_kept"]})
    kept = {
        "_".join(filter(None, ("fraction_kept", row["ratio"], row["variant"]))): row["fraction_kept"]
        for row in report["ratios"]
    }
    for average in report["averages"]:
        name = "_".join(filter(None, ("fraction_kept_mean", average["variant"])))
        low, high = average["fraction_interval"] or (None, None)
        kept |= {name: average["fraction_kept"], f"{name}_low": low, f"{name}_high": high}
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
    rows = [
        _row(run, ratio, variant, losses) for ratio in config.teacher.ratios for variant in config.variants or [None]
    ]
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
        "ratios": rows,
        "averages": [_average(run, variant, losses) for variant in config.variants or [None]],
        "differences": _differences(rows, list(config.variants)),
        "data": {
            "name": run.data.name,
            "digest": run.data.digest,
            "train_tokens": run.data.train_tokens,
            "test_examples": config.data.test_examples,
            "test_documents": getattr(run.data, f"{config.data.eval_split}_documents"),
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


def _average(run: StageRun, variant: str | None, baselines: dict[str, np.ndarray]) -> dict[str, Any]:
    """What the students of one variant keep, over all ratios."""
    students = [_losses(_of_kind(run, "distill", ratio, variant)) for ratio in run.config.teacher.ratios]
    teachers = [
        np.broadcast_to(_losses(_of_kind(run, "teacher", ratio)), student.shape)
        for ratio, student in zip(run.config.teacher.ratios, students, strict=True)
    ]
    average: dict[str, Any] = {"variant": variant}
    for suffix, key in (("", "baseline_losses"), ("_long", "long_baseline_losses")):
        kept, bounds = average_kept(baselines[key], teachers, students, resamples=run.config.report.resamples)
        average |= {f"fraction_kept{suffix}": kept, f"fraction{suffix}_interval": list(bounds) if bounds else None}
    return average


def _differences(rows: list[dict[str, Any]], variants: list[str]) -> list[dict[str, Any]]:
    """What each variant keeps more than "paper", or than the first: by seed, the mean over the ratios where all of them
    have a fraction; none for a seed alone."""
    undefined = {row["ratio"] for row in rows if row["fraction_kept_by_seed"] is None}
    defined = [row for row in rows if row["ratio"] not in undefined]
    if not variants or not defined or len(defined[0]["seeds"]) == 1:
        return []
    kept = {
        name: np.mean([row["fraction_kept_by_seed"] for row in defined if row["variant"] == name], axis=0)
        for name in variants
    }
    other = "paper" if "paper" in kept else variants[0]
    found = []
    for name in (name for name in variants if name != other):
        mean, interval = difference(kept[name], kept[other])
        by_seed = (kept[name] - kept[other]).tolist()
        found.append({"variant": name, "to": other, "difference": mean, "interval": list(interval), "by_seed": by_seed})
    return found


def _seen(run: StageRun, ratio: str, variant: str | None) -> dict[str, Any]:
    """Tokens and operations of each model's training; for a student those of its own steps, its teacher's part too."""
    teacher, student = _of_kind(run, "teacher", ratio)[0], _of_kind(run, "distill", ratio, variant)[0]
    settings = run.config.of_variant(variant).distill
    taught, learnt = run.config.teacher.training, settings.training
    trained_here = ratio not in run.config.teacher.checkpoints
    spent = _spent(run, teacher, taught) if trained_here else {"tokens": None, "flops": None}
    own = _spent(run, student, learnt)
    experts = {"top_1": 1, "mixture": run.config.teacher.ratios[ratio], "sampled": settings.draws}
    lessons = settings.taught_examples * _forward(run, teacher, experts=experts[settings.teacher_routing])
    return {
        "teacher_steps": taught.steps if trained_here else None,
        "teacher_tokens": spent["tokens"],
        "teacher_flops": spent["flops"],
        "student_steps": learnt.steps,
        "student_tokens": own["tokens"],
        "student_flops": own["flops"] + lessons,
    }


def _spent(run: StageRun, model: Finished, training: TrainingConfig, steps: int | None = None) -> dict[str, float]:
    """Tokens, inputs and targets, and floating-point operations of a model's training."""
    lengths = example_lengths(run.data, run.config.data)[1]
    examples = (steps or training.steps) * training.batch_size
    return {"tokens": examples * (lengths.inputs + lengths.targets), "flops": 3 * examples * _forward(run, model)}


def _forward(run: StageRun, model: Finished, *, experts: int = 1) -> float:
    """Operations of a forward pass for one example."""
    lengths = example_lengths(run.data, run.config.data)[1]
    shape = json.loads(model.read("model/config.json").read_text())
    return forward_flops(shape, lengths.inputs, lengths.targets, experts=experts)


def _of_kind(run: StageRun, kind: str, ratio: str | None = None, variant: str | None = None) -> list[Finished]:
    return of_kind(run.stage, run.inputs, kind, ratio, variant)


def _losses(finished: list[Finished], name: str = "losses") -> np.ndarray:
    losses = np.array([read_losses(one, name) for one in finished])
    if not np.isfinite(losses).all():
        one = finished[int(np.argmin(np.isfinite(losses).all(axis=1)))]
        raise UserError(f"{one.title} has a loss that is no number in {one.directory / name}.json; make it again")
    return losses
