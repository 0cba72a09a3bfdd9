"""Stage 4: the fraction of each teacher's gain that its student keeps (section 4.2, tables 6 and 7)."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from distill.files import write_json, write_text
from pipelines.plot import plot_report
from pipelines.run import Outcome, StageRun, read_losses
from pipelines.stage import Finished
from pipelines.view import publish_view

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
        reaches 0, because a fraction of nothing says nothing.

    Raises:
        ValueError: the three do not have the same shape.
    """
    losses = {"baseline": baseline_losses, "teacher": teacher_losses, "student": student_losses}
    quality, sampled = _bootstrap(losses, resamples=resamples, seed=seed)
    gains = sampled["teacher"] - sampled["baseline"]
    if _interval(gains, confidence)[0] <= 0:
        return None, None
    fraction = (quality["student"] - quality["baseline"]) / (quality["teacher"] - quality["baseline"])
    return fraction, _interval((sampled["student"] - sampled["baseline"]) / gains, confidence)


def gain(
    baseline_losses: np.ndarray, teacher_losses: np.ndarray, *, resamples: int = 10_000, seed: int = 0
) -> tuple[float, Interval]:
    """Q_teacher - Q_baseline in nats per target token, with its 95 % paired bootstrap interval."""
    losses = {"baseline": baseline_losses, "teacher": teacher_losses}
    quality, sampled = _bootstrap(losses, resamples=resamples, seed=seed)
    return quality["teacher"] - quality["baseline"], _interval(sampled["teacher"] - sampled["baseline"], 0.95)


def compute(run: StageRun) -> Outcome:
    """Write report.json, report.md and the plot; put each ratio's figures on its student's run."""
    report = build_report(run)
    if run.tracked:
        write_json(run.directory / "report.json", report)
        write_text(run.directory / "report.md", markdown(report))
        plot_report(report, run.directory / "fraction_kept.png")
        for name in FILES:
            run.tracked.log_file(run.directory / name)
        _log_headlines(run, report)
        publish_view(run.tracked.store, run.config.name, run.stage.fingerprint[:12])
    kept = {f"fraction_kept_{row['ratio']}": row["fraction_kept"] for row in report["ratios"]}
    return Outcome({name: value for name, value in kept.items() if value is not None}, {})


def publish(finished: Finished, workdir: Path) -> dict[str, Any]:
    """Copy a finished report to the top of the work directory; return report.json."""
    for name in FILES:
        beside = workdir / f".{name}"
        shutil.copyfile(finished.directory / name, beside)
        beside.replace(workdir / name)
    return json.loads((workdir / "report.json").read_text())


def build_report(run: StageRun) -> dict[str, Any]:
    """report.json: both baselines, a row per ratio, and the data."""
    config = run.config
    baselines = _of_kind(run, "baseline")
    losses = {name: _losses(baselines, name) for name in ("baseline_losses", "long_baseline_losses")}
    facts = baselines[0].facts
    return {
        "baseline": {
            "quality": -float(losses["baseline_losses"].mean()),
            "parameters": facts["parameters"],
            "steps": facts["steps"],
        },
        "long_baseline": {
            "quality": -float(losses["long_baseline_losses"].mean()),
            "steps": facts["long_steps"],
        },
        "ratios": [_row(run, ratio, losses) for ratio in config.teacher.ratios],
        "data": {
            "name": run.data.name,
            "digest": run.data.digest,
            "train_tokens": run.data.train_tokens,
            "validation_examples": config.data.validation_examples,
        },
        "fingerprint": run.stage.fingerprint,
    }


def _row(run: StageRun, ratio: str, baselines: dict[str, np.ndarray]) -> dict[str, Any]:
    teachers, students = _of_kind(run, "teacher", ratio), _of_kind(run, "distill", ratio)
    teacher, student = _losses(teachers), _losses(students)
    resamples = {"resamples": run.config.report.resamples}
    row: dict[str, Any] = {
        "ratio": ratio,
        "experts": run.config.teacher.ratios[ratio],
        "teacher_parameters": teachers[0].facts["parameters"],
        "student_parameters": students[0].facts["parameters"],
        "compression": 1 - students[0].facts["parameters"] / teachers[0].facts["parameters"],
        "teacher_quality": -float(teacher.mean()),
        "student_quality": -float(student.mean()),
        "seeds": run.config.seeds,
        "teacher_run_id": teachers[0].run_id,
        "student_run_id": students[0].run_id,
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
    return row


def _log_headlines(run: StageRun, report: dict[str, Any]) -> None:
    """The figures by which the UI compares ratios stand on the students' runs, and as a curve over experts here."""
    comparison = run.stage.fingerprint[:12]
    for row in report["ratios"]:
        shared = {key: row[key] for key in ("experts", "compression")}
        for teacher in _of_kind(run, "teacher", row["ratio"]):
            run.tracked.set_tags({"comparison": comparison}, teacher.run_id)
        for student in _of_kind(run, "distill", row["ratio"]):
            figures = {key: row[key] for key in ("gain", "fraction_kept", "fraction_kept_long")}
            known = {key: value for key, value in figures.items() if value is not None}
            run.tracked.log_results({**shared, **known}, run_id=student.run_id, model_id=student.model_id)
            undefined = {key: "undefined" for key, value in figures.items() if value is None}
            run.tracked.set_tags({"comparison": comparison, **undefined}, student.run_id)
        if row["fraction_kept"] is not None:
            run.log_curve(row["experts"], {"kept_by_experts": row["fraction_kept"]})


def markdown(report: dict[str, Any]) -> str:
    """report.md: the table of the terminal, and what its columns mean."""
    header, rows = _cells(report)
    lines = ["| " + " | ".join(header) + " |", "| :--- |" + " ---: |" * (len(header) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    data = report["data"]
    seeds = " and seeds" if len(report["ratios"][0]["seeds"]) > 1 else ""
    return (
        "# Fraction of the teacher's gain that the student keeps\n\n" + "\n".join(lines) + f"\n\n{_caption(report)}\n\n"
        f"Quality Q is the negative log perplexity on {data['validation_examples']:,} held-out examples, in nats per "
        "target token; higher is better. Gain is Q teacher - Q baseline; kept is (Q student - Q baseline) / gain. "
        f"Intervals are 95 % paired bootstrap intervals over examples{seeds}.\n\n"
        f"Data: {data['name']}, {data['train_tokens']:,} training tokens, digest `{data['digest']}`. "
        f"Report: `{report['fingerprint']}`.\n"
    )


def table(report: dict[str, Any]) -> Table:
    """The report for a terminal of 80 columns: an interval stands under its figure."""
    header, rows = _cells(report)
    drawn = Table(
        title="Fraction of the teacher's gain that the student keeps",
        caption=_caption(report),
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=0,
    )
    for name in header:
        broken = name.replace("compression", "com-\npression").replace("Q ", "Q\n").replace(", ", ",\n")
        drawn.add_column(broken, justify="left" if name == "ratio" else "right", no_wrap=True)
    for row in rows:
        drawn.add_row(*(cell.replace(" [", "\n[") for cell in row))
    return drawn


def _cells(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    header = ["ratio", "size", "compression", "Q teacher", "Q student", "gain", "kept", "kept, long"]
    rows = [
        [
            row["ratio"],
            _millions(row["teacher_parameters"]),
            f"{row['compression']:.0%}",
            f"{row['teacher_quality']:.3f}",
            f"{row['student_quality']:.3f}",
            f"{row['gain']:.3f} [{row['gain_interval'][0]:.3f}, {row['gain_interval'][1]:.3f}]",
            _percent(row["fraction_kept"], row["fraction_interval"]),
            _percent(row["fraction_kept_long"], row["fraction_long_interval"]),
        ]
        for row in report["ratios"]
    ]
    return header, rows


def _caption(report: dict[str, Any]) -> str:
    """Both baselines, and for which ratios a fraction is undefined."""
    short, long = report["baseline"], report["long_baseline"]
    text = (
        f"Size is the teacher's; student and baseline have {_millions(short['parameters'])}. The baseline stands at "
        f"{short['quality']:.3f} after {short['steps']:,} steps, as many as the student takes; the long baseline at "
        f"{long['quality']:.3f} after {long['steps']:,}, as many as teacher and student take together."
    )
    for name, key in (("baseline", "fraction_kept"), ("long baseline", "fraction_kept_long")):
        if ratios := [row["ratio"] for row in report["ratios"] if row[key] is None]:
            text += f" Undefined for {', '.join(ratios)}: the gain over the {name} has an interval that reaches 0."
    return text


def _percent(fraction: float | None, interval: Sequence[float] | None) -> str:
    return "undefined" if fraction is None else f"{fraction:.0%} [{interval[0]:.0%}, {interval[1]:.0%}]"


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:,.2f}M" if parameters < 1e7 else f"{parameters / 1e6:,.0f}M"


def _of_kind(run: StageRun, kind: str, ratio: str | None = None) -> list[Finished]:
    """The finished runs of one kind and ratio, one per seed."""
    stages = run.stage.inputs.items()
    return [run.inputs[role] for role, stage in stages if stage.kind == kind and stage.ratio == ratio]


def _losses(finished: list[Finished], name: str = "validation_losses") -> np.ndarray:
    return np.array([read_losses(one, name) for one in finished])


def _bootstrap(
    losses: dict[str, np.ndarray], *, resamples: int, seed: int
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Quality of each model, and its quality in every resample [resamples]: the same examples and seeds for all."""
    arrays = {name: np.atleast_2d(np.asarray(values, dtype=np.float64)) for name, values in losses.items()}
    shapes = {values.shape for values in arrays.values()}
    if len(shapes) != 1:
        raise ValueError(f"losses must have the same seeds and examples, not shapes {sorted(shapes)}")
    seeds, examples = shapes.pop()
    rng = np.random.default_rng(seed)
    example_weights = rng.multinomial(examples, np.full(examples, 1 / examples), size=resamples) / examples
    seed_weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
    sampled = {name: -((example_weights @ values.T) * seed_weights).sum(axis=1) for name, values in arrays.items()}
    return {name: -float(values.mean()) for name, values in arrays.items()}, sampled


def _interval(samples: np.ndarray, confidence: float) -> Interval:
    low, high = np.quantile(samples, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
