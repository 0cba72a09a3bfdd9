"""The stages of a config, and the settings and inputs that each stage depends on. Imports no torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.config import DistillConfig, Section, TrainingConfig
from distill.io.hub import at_revision
from distill.training.precision import resolve_precision
from pipelines.config.run_config import RunConfig
from pipelines.workdir.stage import Stage

_OPTIONS = ("balance", "targets", "beams", "soft_start", "lengths")


def plan(config: RunConfig, data: str, pretrained: Sequence[Stage] = ()) -> list[Stage]:
    """All stages of ``config``, each after its inputs. The report is last.

    Each seed has a baseline, a long baseline if teachers are trained, a teacher per ratio, and per variant the stages
    init, answer (if the teacher's answers are the hard labels), label (if labels are cached) and distill. A stage that
    seeds or variants share occurs once.

    Args:
        data: fingerprint of the prepared data.
        pretrained: the stages of the config that ``config.pretrained`` names.
    """
    stages = []
    for seed in config.seeds:
        baseline = _baseline(config, data, seed, _pretrained(pretrained, "baseline", None, seed))
        stages += [baseline, *_long_baseline(config, baseline)]
        for ratio, experts in config.teacher.ratios.items():
            start = _pretrained(pretrained, "teacher", ratio, seed)
            teacher = _teacher(config, data, ratio, experts, seed, start)
            stages.append(teacher)
            for variant in config.variants or [None]:
                stages += _student(config.of_variant(variant), teacher, seed, variant)
    report = Stage(
        kind="report",
        settings={
            "report": _values(config.report),
            "name": config.name,
            "order": [config.seeds, list(config.variants)],  # of the rows; the first of each is the reference
            **({"metrics": config.task.metrics} if config.task else {}),
        },
        inputs={stage.title: stage for stage in stages if stage.kind not in ("init", "answer", "label")},
        data=data,
    )
    first = {stage.fingerprint: stage for stage in reversed(stages)}
    return [*(stage for stage in stages if first[stage.fingerprint] is stage), report]


def training_of(config: RunConfig, stage: Stage) -> TrainingConfig | None:
    """The training settings of a stage; None if it trains nothing, or uses a loaded teacher as it is."""
    if stage.kind == "distill":
        return config.of_variant(stage.variant).distill.training
    if stage.kind == "teacher":
        return config.teacher.training if stage.ratio and config.trains_teacher(stage.ratio) else None
    if stage.kind == "long-baseline":
        return config.distill.training
    return config.baseline_training if stage.kind == "baseline" else None


def _pretrained(stages: Sequence[Stage], kind: str, ratio: str | None, seed: int) -> dict[str, Stage]:
    """The pre-trained model that a stage starts from, as its input: of the same seed if there is one."""
    found = [stage for stage in stages if (stage.kind, stage.ratio) == (kind, ratio)]
    found.sort(key=lambda stage: stage.seed != seed)
    return {"pretrained": found[0]} if found else {}


def _baseline(config: RunConfig, data: str, seed: int, start: dict[str, Stage]) -> Stage:
    if start:
        made: dict[str, Any] = {}
    elif source := config.baseline.checkpoint:
        made = {"checkpoint": _source(source, "baseline.checkpoint"), "dtype": "float32"}
    elif config.teacher.checkpoints:  # the baseline gets the shape of the first loaded teacher's student
        made = {"shape_of": _source(next(iter(config.teacher.checkpoints.values())), "teacher")}
    else:
        made = {"model": _values(config.model)}
    if config.baseline.d_ff:
        made["d_ff"] = config.baseline.d_ff
    training = config.baseline_training
    lengths = {"steps": config.baseline_steps, "full_steps": training.steps}
    settings = {**_common(config), "seed": seed, **made, "training": _training_settings(training), **lengths}
    return Stage("baseline", settings, start, data=data, seed=seed)


def _long_baseline(config: RunConfig, baseline: Stage) -> list[Stage]:
    """The stage that continues the baseline; none without a trained teacher, because then it adds no steps."""
    if not config.trains_teachers:
        return []
    settings = {**_common(config), "seed": baseline.seed, "training": _training_settings(config.distill.training)}
    if config.distill.lengths:  # omitted at its default, as in _distill_settings
        settings["lengths"] = config.distill.lengths
    return [Stage("long-baseline", settings, {"baseline": baseline}, data=baseline.data, seed=baseline.seed)]


def _teacher(
    config: RunConfig, data: str, ratio: str, experts: int, seed: int | None, start: dict[str, Stage]
) -> Stage:
    made: dict[str, Any] = {}
    if source := config.teacher.checkpoints.get(ratio):
        made = {"checkpoint": _source(source, "teacher")}
    elif not start:
        made = {"model": _values(config.model)}
    if config.trains_teacher(ratio):
        made |= {
            "seed": seed,
            "training": _training_settings(config.teacher.training),
            "load_balancing_weight": config.teacher.load_balancing_weight,
        }
    elif source:  # all seeds share a teacher that is used as it is; it is not copied
        made, seed = {**made, "copied": False}, None
    settings = {**_common(config), **_switch_layer(config), **made, "experts": experts}
    return Stage("teacher", settings, start, data=data, ratio=ratio, seed=seed)


def _student(config: RunConfig, teacher: Stage, seed: int, variant: str | None) -> list[Stage]:
    """The stages init, answer, label and distill of one student; answer and label only if the student reads them."""
    where: dict[str, Any] = {"data": teacher.data, "ratio": teacher.ratio, "seed": seed, "variant": variant}
    init = Stage("init", {"seed": seed, "student": _student_settings(config)}, {"teacher": teacher}, **where)
    # A student without soft labels depends on the teacher only through its initial weights.
    soft = {"teacher": teacher} if config.distill.runs_teacher else {}
    made: list[Stage] = []
    answers: dict[str, Stage] = {}
    of_teacher = {**where, "seed": teacher.seed}
    if config.distill.targets == "teacher":
        common = _common(config)
        longest = common["examples"]["max_target"]
        asked = {"precision": common["precision"], "beams": config.distill.beams, "max_target": longest}
        made = [Stage("answer", asked, {"teacher": teacher}, **of_teacher)]
        answers = {"answer": made[0]}
    if config.distill.reads_cached_labels:
        label = Stage("label", _label_settings(config), {"teacher": teacher, **answers}, **of_teacher)
        made, soft = [*made, label], {"label": label}
    distill = _distill_settings(config.distill)
    settings = {**_common(config), "seed": seed, **_switch_layer(config), "distill": distill}
    return [init, *made, Stage("distill", settings, {**soft, **answers, "init": init}, **where)]


def _switch_layer(config: RunConfig) -> dict[str, Any]:
    return _values(config.teacher, exclude={"experts", "checkpoints", "training", "load_balancing_weight", "memory"})


def _student_settings(config: RunConfig) -> dict[str, Any]:
    """Settings of the initial weights besides seed, data and teacher. The teacher's settings include the examples'."""
    unread = set() if config.student.reads_text else {"calibration_examples"}
    if config.student.non_expert_init == "teacher":
        unread.add("non_expert_init")  # omitted at its default, as in _distill_settings
    if config.student.is_calibrated or not config.student.measure_ffn_errors:  # calibration measures them too
        unread.add("measure_ffn_errors")
    unread |= {name for name in ("d_ff", "num_decoder_layers") if getattr(config.student, name) is None}
    return _values(config.student, exclude=unread)


def _distill_settings(distill: DistillConfig) -> dict[str, Any]:
    """Settings of distillation without options at their defaults, so that a new option keeps existing fingerprints."""
    off = {name for name in _OPTIONS if getattr(distill, name) == DistillConfig.model_fields[name].default}
    unread = {"expert_parallel"} if distill.reads_cached_labels else {"expert_parallel", "soft_labels", "labels"}
    settings = _values(distill, exclude=off | unread)
    return settings | {"training": _training_settings(distill.training)}


def _training_settings(training: TrainingConfig) -> dict[str, Any]:
    """Settings of training without options at their defaults, as in _distill_settings."""
    options = ("on_divergence", "dropout", "patience")
    off = {name for name in options if getattr(training, name) == TrainingConfig.model_fields[name].default}
    return _values(training, exclude=off)


def _label_settings(config: RunConfig) -> dict[str, Any]:
    """Settings of cached labels besides teacher and data. The student's seed and training do not matter here."""
    common = _common(config)
    held_out = ("test_examples", "eval_split", "max_target")
    shape = {name: value for name, value in common["examples"].items() if name not in held_out}
    if config.task:  # the order of pairs depends on it
        shape["batch_size"] = config.distill.training.batch_size
    return {
        **common,
        "examples": shape,
        "capacity_factor_eval": config.teacher.capacity_factor_eval,
        "temperature": config.distill.temperature,
        "labels": {**_values(config.distill.labels), "examples": config.distill.num_labelled_examples},
    }


def _common(config: RunConfig) -> dict[str, Any]:
    """Settings that all stages which train or evaluate depend on, besides the prepared data.

    The precision ``auto`` is resolved on this machine. A machine that resolves it differently has different stages.
    """
    examples = {"test_examples", "eval_split"}
    if config.task is None:
        examples |= {"input_length", "noise_density", "mean_span_length"}
    # The prepared data depend on max_target only if a target is as long, but answers always do.
    of_task = {"max_target": config.task.max_target} if config.task else {}
    return {
        "precision": resolve_precision(config.precision),
        "evaluation_batch_size": config.teacher.evaluation_batch_size,
        "examples": {**_values(config.data, include=examples), **of_task},
    }


def _values(section: Section, **options: Any) -> dict[str, Any]:
    """The values of a section, under the names that fingerprints use; see ``Section.renamed``."""
    return section.model_dump(mode="json", by_alias=True, **options)


def _source(source: str, description: str) -> dict[str, Any]:
    """Identity of a loaded model: name and commit on the hub, or a directory and the size and time of its files.

    Raises:
        UserError: the hub has no such model or revision.
    """
    if not Path(source).is_dir():
        return at_revision(source, "model", f"{description} {source!r}")._asdict()
    files = sorted(path for path in Path(source).iterdir() if path.is_file())
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return {"name": source, "files": stamps}
