"""Which stages a config has, and what each depends on. Needs no torch."""

from pathlib import Path
from typing import Any

from distill.config import DistillConfig, Section, TrainingConfig
from distill.io.hub import at_revision
from distill.training.precision import resolve_precision
from pipelines.config.run_config import RunConfig
from pipelines.workdir.stage import Stage

_OPTIONS = ("soft_start", "teacher_routing", "draws", "match", "match_weight", "match_steps")


def plan(config: RunConfig, data: str) -> list[Stage]:
    """Every stage of ``config`` once, each after its inputs; the report is last.

    Per seed the baseline, then per ratio the teacher, and per variant init, label (where labels are cached) and
    distill. What seeds or variants have in common is there once.

    Args:
        data: fingerprint of the prepared data.
    """
    stages = []
    for seed in config.seeds:
        stages.append(_baseline(config, data, seed))
        for ratio, experts in config.teacher.ratios.items():
            teacher = _teacher(config, data, ratio, experts, seed)
            stages.append(teacher)
            for variant in config.variants or [None]:
                stages += _student(config.of_variant(variant), teacher, seed, variant)
    report = Stage(
        kind="report",
        settings={"report": _values(config.report), "name": config.name},
        inputs={stage.title: stage for stage in stages if stage.kind not in ("init", "label")},
        data=data,
    )
    first = {stage.fingerprint: stage for stage in reversed(stages)}
    return [*(stage for stage in stages if first[stage.fingerprint] is stage), report]


def baseline_steps(config: RunConfig) -> int:
    """Steps of the baseline."""
    return config.baseline.steps or config.distill.training.steps


def long_steps(config: RunConfig) -> int:
    """Steps of the long baseline: as many as teacher and student take together. A loaded teacher takes none here."""
    teacher = config.teacher.training.steps if config.teacher.experts else 0
    return config.distill.training.steps + teacher


def baseline_training(config: RunConfig) -> TrainingConfig:
    """How the baseline is trained: as a teacher that starts from scratch too, or as the student where none does."""
    return config.teacher.training if config.teacher.experts else config.distill.training


def _baseline(config: RunConfig, data: str, seed: int) -> Stage:
    if source := config.baseline.checkpoint:
        made = {"checkpoint": _source(source, "baseline.checkpoint"), "dtype": "float32"}
    elif config.teacher.checkpoints:  # the shape of a loaded teacher's student
        made = {"shape_of": _source(next(iter(config.teacher.checkpoints.values())), "teacher")}
    else:
        made = {"model": _values(config.model)}
    lengths = {"steps": baseline_steps(config), "long_steps": long_steps(config)}
    training = _training_settings(baseline_training(config))
    settings = {**_common(config), "seed": seed, **made, "training": training, **lengths}
    return Stage("baseline", settings, data=data, seed=seed)


def _teacher(config: RunConfig, data: str, ratio: str, experts: int, seed: int | None) -> Stage:
    if source := config.teacher.checkpoints.get(ratio):
        made, seed = {"checkpoint": _source(source, "teacher")}, None  # the same for every seed
    else:
        made = {
            "seed": seed,
            "model": _values(config.model),
            "training": _training_settings(config.teacher.training),
            "load_balancing_weight": config.teacher.load_balancing_weight,
        }
    settings = {**_common(config), **_switch_layer(config), **made, "experts": experts}
    return Stage("teacher", settings, data=data, ratio=ratio, seed=seed)


def _student(config: RunConfig, teacher: Stage, seed: int, variant: str | None) -> list[Stage]:
    """Init, label where labels are cached, and distill."""
    where: dict[str, Any] = {"data": teacher.data, "ratio": teacher.ratio, "seed": seed, "variant": variant}
    init = Stage("init", {"seed": seed, "student": _student_settings(config)}, {"teacher": teacher}, **where)
    # A student without soft labels or states to match does not read the teacher, whose only trace is in its weights.
    soft = {"teacher": teacher} if config.distill.runs_teacher else {}
    labelling: list[Stage] = []
    if config.distill.reads_cached_labels:
        of_teacher = {**where, "seed": teacher.seed}
        labelling = [Stage("label", _label_settings(config), {"teacher": teacher}, **of_teacher)]
        soft = {"label": labelling[0]}
    distill = _distill_settings(config.distill)
    settings = {**_common(config), "seed": seed, **_switch_layer(config), "distill": distill}
    return [init, *labelling, Stage("distill", settings, {**soft, "init": init}, **where)]


def _switch_layer(config: RunConfig) -> dict[str, Any]:
    return config.teacher.model_dump(exclude={"experts", "checkpoints", "training", "load_balancing_weight"})


def _student_settings(config: RunConfig) -> dict[str, Any]:
    """What the initial weights depend on besides seed, data and teacher, whose settings hold how examples are made."""
    unread = set() if config.student.is_calibrated else {"calibration_examples"}
    if config.student.non_expert_init == "teacher":
        unread.add("non_expert_init")  # its default is left out, as in _distill_settings
    return config.student.model_dump(mode="json", exclude=unread)


def _distill_settings(distill: DistillConfig) -> dict[str, Any]:
    """Options that are off are left out: a student without them is the same stage, whatever options there are."""
    off = {name for name in _OPTIONS if getattr(distill, name) == DistillConfig.model_fields[name].default}
    unread = set() if distill.reads_cached_labels else {"soft_labels", "labels"}
    settings = distill.model_dump(mode="json", exclude=off | unread)
    return settings | {"training": _training_settings(distill.training)}


def _training_settings(training: TrainingConfig) -> dict[str, Any]:
    """A run that stops where it diverges is the same stage, whatever else it might do."""
    return training.model_dump(mode="json", exclude={"on_divergence"} if training.on_divergence == "stop" else None)


def _label_settings(config: RunConfig) -> dict[str, Any]:
    """What labels depend on besides teacher and data: neither the student's seed nor how it is trained."""
    common = _common(config)
    held_out = ("test_examples", "eval_split")
    shape = {name: value for name, value in common["examples"].items() if name not in held_out}
    return {
        **common,
        "examples": shape,
        "capacity_factor_eval": config.teacher.capacity_factor_eval,
        "temperature": config.distill.temperature,
        "labels": {**_values(config.distill.labels), "examples": config.distill.labelled_examples},
        **config.distill.model_dump(include={"teacher_routing"}, exclude_defaults=True),
    }


def _common(config: RunConfig) -> dict[str, Any]:
    """What every stage that trains or evaluates depends on besides the prepared data and, mostly, the seed.

    The precision is that of this machine: where another one would take another, its stages are not the same.
    """
    examples = {"input_length", "noise_density", "mean_span_length", "test_examples", "eval_split"}
    return {
        "precision": resolve_precision(config.precision),
        "evaluation_batch_size": config.teacher.evaluation_batch_size,
        "examples": config.data.model_dump(include=examples),
    }


def _values(section: Section) -> dict[str, Any]:
    return section.model_dump(mode="json")


def _source(source: str, what: str) -> dict[str, Any]:
    """What a loaded model is: name and commit on the hub, or a directory with size and time of its files.

    Raises:
        UserError: the hub has no such model or revision.
    """
    if not Path(source).is_dir():
        return at_revision(source, "model", f"{what} {source!r}")._asdict()
    files = sorted(path for path in Path(source).iterdir() if path.is_file())
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return {"name": source, "files": stamps}
