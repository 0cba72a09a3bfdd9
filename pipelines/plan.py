"""Which stages a config has, and what each depends on. Needs no torch."""

from pathlib import Path
from typing import Any

from distill.config import Section, TrainingConfig
from pipelines.config import RunConfig
from pipelines.stage import Stage


def plan(config: RunConfig, data: str) -> list[Stage]:
    """Every stage of ``config``, each after its inputs: baseline, then per ratio teacher, init, distill; report last.

    Args:
        data: fingerprint of the prepared data.
    """
    stages: list[Stage] = []
    for seed in config.seeds:
        stages.append(_baseline(config, data, seed))
        for ratio, experts in config.teacher.ratios.items():
            stages += _one_ratio(config, data, ratio, experts, seed)
    report = Stage(
        kind="report",
        settings={"report": _values(config.report), "name": config.name},
        inputs={stage.title: stage for stage in stages if stage.kind != "init"},
        data=data,
    )
    return [*stages, report]


def long_steps(config: RunConfig) -> int:
    """Steps of the long baseline: as many as teacher and student take together. A loaded teacher takes none here."""
    teacher = config.teacher.training.steps if config.teacher.experts else 0
    return config.distill.training.steps + teacher


def baseline_training(config: RunConfig) -> TrainingConfig:
    """How the baseline is trained: as a teacher that starts from scratch too, or as the student where none does."""
    return config.teacher.training if config.teacher.experts else config.distill.training


def _baseline(config: RunConfig, data: str, seed: int) -> Stage:
    if source := config.baseline.checkpoint:
        made = {"checkpoint": _source(source)}
    elif config.teacher.checkpoints:  # the shape of a loaded teacher's student
        made = {"shape_of": _source(next(iter(config.teacher.checkpoints.values())))}
    else:
        made = {"model": _values(config.model)}
    lengths = {"steps": config.distill.training.steps, "long_steps": long_steps(config)}
    settings = {**_common(config, seed), **made, "training": _values(baseline_training(config)), **lengths}
    return Stage("baseline", settings, data=data, seed=seed, show_seed=len(config.seeds) > 1)


def _one_ratio(config: RunConfig, data: str, ratio: str, experts: int, seed: int) -> list[Stage]:
    where: dict[str, Any] = {"data": data, "ratio": ratio, "seed": seed, "show_seed": len(config.seeds) > 1}
    layer = config.teacher.model_dump(exclude={"experts", "checkpoints", "training", "load_balancing_weight"})
    if source := config.teacher.checkpoints.get(ratio):
        made = {"checkpoint": _source(source)}
    else:
        made = {
            "model": _values(config.model),
            "training": _values(config.teacher.training),
            "load_balancing_weight": config.teacher.load_balancing_weight,
        }
    common = _common(config, seed)
    teacher = Stage("teacher", {**common, **layer, **made, "experts": experts}, **where)
    init = Stage("init", {"seed": seed, "student": _values(config.student)}, {"teacher": teacher}, **where)
    # Without soft labels the teacher is not read: its only trace is in the initial weights.
    soft = {"teacher": teacher} if config.distill.hard_fraction < 1 else {}
    distill = Stage("distill", {**common, **layer, "distill": _values(config.distill)}, {**soft, "init": init}, **where)
    return [teacher, init, distill]


def _common(config: RunConfig, seed: int) -> dict[str, Any]:
    """What every stage that trains or evaluates depends on besides the prepared data."""
    examples = {"input_length", "noise_density", "mean_span_length", "validation_examples"}
    return {
        "seed": seed,
        "precision": config.precision,
        "evaluation_batch_size": config.teacher.evaluation_batch_size,
        "examples": config.data.model_dump(include=examples),
    }


def _values(section: Section) -> dict[str, Any]:
    return section.model_dump(mode="json")


def _source(source: str | None) -> Any:
    """A checkpoint's name, and for a local directory size and time of its files: other files, another stage."""
    if source is None or not Path(source).is_dir():
        return source
    files = sorted(path for path in Path(source).iterdir() if path.is_file())
    return [source, [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]]
