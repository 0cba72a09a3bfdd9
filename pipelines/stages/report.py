"""Stage 4: the fraction of each teacher's gain that its student keeps (section 4.2, tables 6 and 7)."""

import json
from typing import Any, NamedTuple

import numpy as np

from distill.config import TrainingConfig
from distill.data.prepared_data import LOST
from distill.io.files import write_json
from distill.model_size import forward_flops
from distill.processes import is_main_process
from pipelines.reporting.bootstrap import MIN_DOCUMENTS, average_kept, effective_documents
from pipelines.reporting.comparison import (
    Figure,
    Models,
    compared,
    differences_by_seed,
    kept_by_seed,
    mean_quality,
    student_gains,
)
from pipelines.reporting.concentration import hardest_documents
from pipelines.reporting.levelling import levelling
from pipelines.reporting.report_files import write_report
from pipelines.reporting.step_curve import add_points, rows_with_points
from pipelines.reporting.sums import DocumentSums
from pipelines.reporting.table import differ_in_size
from pipelines.reporting.task_report import TaskResults, task_facts, task_results
from pipelines.reporting.verdict import AGAINST
from pipelines.runner.stage_data import task_data
from pipelines.runner.stage_run import Outcome, StageRun
from pipelines.tracking.environment import versions
from pipelines.workdir.stage import FinishedStage, inputs_of_kind, read_values


class Results(NamedTuple):
    """What all models of a report did with the evaluated examples."""

    quality: Figure
    task: TaskResults | None


def compute(run: StageRun) -> Outcome:
    """Write the report's files.

    Returns:
        Fractions kept, their means with intervals, and facts of the data, as metrics.

    Raises:
        UserError: an input is damaged.
    """
    results = _read_results(run)
    report = build_report(run, results)
    if is_main_process():
        write_json(run.directory / "documents.json", results.quality.documents.tolist())
        write_report(report, run.directory)
        if results.task:
            write_json(run.directory / "examples.json", results.task.table())
    for row in report["ratios"]:
        if row["fraction_kept"] is not None:
            name = "_".join(filter(None, ("kept_by_experts", row["variant"])))
            run.log_curve(row["experts"], {name: row["fraction_kept"]})
    for row in rows_with_points(report):
        name = "_".join(filter(None, ("kept_by_steps", row["ratio"], row["variant"])))
        for point in row["lengths"]:
            if point["fraction_kept"] is not None:
                run.log_curve(point["steps"], {name: point["fraction_kept"]})
    kept = {
        "_".join(filter(None, ("fraction_kept", row["ratio"], row["variant"]))): row["fraction_kept"]
        for row in report["ratios"]
    }
    for average in report["averages"]:
        name = "_".join(filter(None, ("fraction_kept_mean", average["variant"])))
        low, high = average["fraction_interval"] or (None, None)
        kept |= {name: average["fraction_kept"], f"{name}_low": low, f"{name}_high": high}
    kept |= {key: report["data"][key] for key in ("test_documents", "overlap", "unseen", *LOST)}
    return Outcome({name: value for name, value in kept.items() if value is not None}, {})


def build_report(run: StageRun, results: Results) -> dict[str, Any]:
    """The values of report.json: both baselines, a row per ratio and variant, and the data."""
    config, quality = run.config, results.quality
    baselines = _of_kind(run, "baseline")
    variants = config.variants or [None]
    sums = quality.sums()
    rows = [_row(run, quality, sums, ratio, variant) for ratio in config.teacher.ratios for variant in variants]
    report = {
        "baseline": {
            "quality": mean_quality(quality.values.baselines[""], quality.weights),
            "parameters": baselines[0].facts["parameters"],
            **_cost(run, baselines, config.baseline_training),
        },
        "long_baseline": {
            "quality": mean_quality(quality.values.baselines["_long"], quality.weights),
            **_long_cost(run),
        },
        "ratios": rows,
        "averages": [_average(run, quality, variant) for variant in variants],
        "differences": differences_by_seed(rows, list(config.variants)),
        "data": _data(run, quality, results.task),
        "config": config.name,
        "versions": versions(),
        "fingerprint": run.stage.fingerprint,
    }
    report["levelling"] = levelling(report)
    if differ_in_size(report):
        rows[:] = [row | _sizes(run, row["ratio"], row["variant"]) for row in rows]
    if results.task:
        results.task.add_rows(rows, quality, config.report.resamples)
        report["examples"] = results.task.shown()
    return report


def _read_results(run: StageRun) -> Results:
    config, seeds = run.config, len(run.config.seeds)

    def read(what: str) -> Models[list[Any]]:
        """The losses or answers of all models, one list per seed, or a single list for a loaded teacher."""
        baselines, long = _of_kind(run, "baseline"), _of_kind(run, "long-baseline")
        teachers = {ratio: _values(_of_kind(run, "teacher", ratio), what) for ratio in config.teacher.ratios}
        students = {
            (ratio, variant): _values(_of_kind(run, "distill", ratio, variant), what)
            for ratio in config.teacher.ratios
            for variant in config.variants or [None]
        }
        strict = _values(long, what) if long else _values(baselines, f"full_{what}")
        return Models({"": _values(baselines, f"baseline_{what}"), "_long": strict}, teachers, students)

    def of_seeds(values: list[Any]) -> np.ndarray:
        found = np.array(values)
        return np.broadcast_to(found, (seeds, found.shape[1]))

    documents, weights = run.data.evaluated_documents(config.data), run.data.target_tokens(config.data)
    quality = Figure(read("losses").map(of_seeds), documents, weights)
    if config.task is None:
        return Results(quality, None)
    examples = task_data(run.data).task_examples(config.data)
    return Results(quality, task_results(config.task.metrics, read("answers"), examples, seeds))


def _data(run: StageRun, quality: Figure, task: TaskResults | None) -> dict[str, Any]:
    """The data that models were trained and evaluated on."""
    split, documents = run.config.data.eval_split, quality.documents
    _, number, counts = np.unique(documents, return_inverse=True, return_counts=True)
    effective = effective_documents(counts if quality.weights is None else np.bincount(number, quality.weights))
    hardest, example = hardest_documents(quality.values.baselines[""], documents, quality.weights)
    return {
        "name": run.data.name,
        "revision": run.data.revision,
        "digest": run.data.digest,
        "train_tokens": run.data.parts["train"].tokens,
        "eval_split": split,
        "test_examples": len(documents),
        "test_documents": len(counts),
        "effective_documents": effective,
        "too_few_documents": effective < MIN_DOCUMENTS,
        "largest_document": float(counts.max() / counts.sum()),
        "hardest": hardest | ({"input": task.examples.inputs[example]} if task else {}),
        "overlap": run.data.parts[split].overlap,
        "unseen": run.data.parts[split].unseen,
        **run.data.lost,
        **(task_facts(task_data(run.data), split, task) if task else {}),
    }


def _row(run: StageRun, quality: Figure, sums: Models[DocumentSums], ratio: str, variant: str | None) -> dict[str, Any]:
    teachers, students = _of_kind(run, "teacher", ratio), _of_kind(run, "distill", ratio, variant)
    resamples = run.config.report.resamples
    row: dict[str, Any] = {
        "ratio": ratio,
        "variant": variant,
        "experts": run.config.teacher.ratios[ratio],
        "teacher_parameters": teachers[0].facts["parameters"],
        "student_parameters": students[0].facts["parameters"],
        "compression": 1 - students[0].facts["parameters"] / teachers[0].facts["parameters"],
        "teacher_quality": mean_quality(quality.values.teachers[ratio], quality.weights),
        "student_quality": mean_quality(quality.values.students[ratio, variant], quality.weights),
        **_training_cost(run, ratio, variant),
        "seeds": run.config.seeds,
        "teacher_run_id": teachers[0].run_id or None,  # None until MLflow has it
        "student_run_id": students[0].run_id or None,
        "student_model_uri": students[0].model_uri,
    }
    for suffix in AGAINST:
        row |= compared(sums, ratio, variant, resamples, against=(suffix,))
        row[f"fraction_kept{suffix}_by_seed"] = kept_by_seed(sums, ratio, variant, suffix, resamples)
    row |= student_gains(sums, ratio, variant, resamples)
    if lengths := run.config.of_variant(variant).distill.lengths:
        losses = _losses_after(students, lengths) | {row["student_steps"]: quality.values.students[ratio, variant]}
        add_points(row, quality, losses, _long_losses(run, quality, variant), resamples)
    return row


def _losses_after(models: list[FinishedStage], lengths: list[int]) -> dict[int, np.ndarray]:
    return {steps: np.array(_values(models, f"after-{steps}-losses")) for steps in lengths}


def _long_losses(run: StageRun, quality: Figure, variant: str | None) -> dict[int, np.ndarray]:
    """The losses of the long baseline after each of its numbers of steps with the student's settings.

    If no teacher is trained there is no such stage, and every length is compared with the baseline of all steps.
    """
    settings, full = run.config.distill, quality.values.baselines["_long"]
    if long := _of_kind(run, "long-baseline"):
        known = _losses_after(long, settings.lengths)
        return known if settings.training.patience else known | {settings.training.steps: full}
    own = run.config.of_variant(variant).distill
    return dict.fromkeys([*own.lengths, own.training.steps], full)


def _sizes(run: StageRun, ratio: str, variant: str | None) -> dict[str, int]:
    shape = json.loads(_of_kind(run, "distill", ratio, variant)[0].read("model/config.json").read_text())
    return {"student_d_ff": shape["d_ff"], "student_decoder_layers": shape["num_decoder_layers"]}


def _average(run: StageRun, quality: Figure, variant: str | None) -> dict[str, Any]:
    """The mean over all ratios of the fractions that the students of one variant keep, against each baseline."""
    models = quality.values
    students = [models.students[ratio, variant] for ratio in run.config.teacher.ratios]
    options: dict[str, Any] = {"documents": quality.documents, "weights": quality.weights}
    options["resamples"] = run.config.report.resamples
    average: dict[str, Any] = {"variant": variant}
    for suffix, baseline in models.baselines.items():
        kept, bounds = average_kept(baseline, list(models.teachers.values()), students, **options)
        average |= {f"fraction_kept{suffix}": kept, f"fraction{suffix}_interval": list(bounds) if bounds else None}
    return average


def _training_cost(run: StageRun, ratio: str, variant: str | None) -> dict[str, Any]:
    """Steps, tokens and floating-point operations of the training of a teacher and its student.

    A student's figures count its own steps. Its operations include the forward passes of its teacher for soft labels,
    but not those for answers, because the stage answer is no input of the report.
    """
    teachers, students = _of_kind(run, "teacher", ratio), _of_kind(run, "distill", ratio, variant)
    settings = run.config.of_variant(variant).distill
    own = _cost(run, students, settings.training)
    passes = np.mean([settings.num_teacher_examples(one.facts["steps"]) for one in students])
    own["flops"] += float(passes) * _forward_flops(run, teachers[0])
    teacher = _cost(run, teachers, run.config.teacher.training) if run.config.trains_teacher(ratio) else {}
    cost = {f"teacher_{key}": teacher.get(key) for key in own}  # None: unknown
    return cost | {f"student_{key}": value for key, value in own.items()}


def _long_cost(run: StageRun) -> dict[str, float]:
    """Steps, tokens and operations of the long baseline: of both of its parts."""
    cost = _cost(run, _of_kind(run, "baseline"), run.config.baseline_training, "full_steps")
    if long := _of_kind(run, "long-baseline"):
        own = _cost(run, long, run.config.distill.training)
        cost = {key: value + own[key] for key, value in cost.items()}
    return cost


def _cost(
    run: StageRun, models: list[FinishedStage], training: TrainingConfig, steps: str = "steps"
) -> dict[str, float]:
    """Steps, tokens (inputs and targets) and floating-point operations of a model's training.

    They are means over ``models``, one per seed, because early stopping may give each seed its own steps. ``steps`` is
    the name of the fact with their number.
    """
    lengths = run.data.mean_lengths(run.config.data)
    # The records of teachers from before early stopping have no steps.
    taken = float(np.mean([one.facts.get(steps, training.steps) for one in models]))
    examples = taken * training.batch_size
    return {
        "steps": round(taken),
        "tokens": round(examples * (lengths.inputs + lengths.targets)),
        "flops": 3 * examples * _forward_flops(run, models[0]),
    }


def _forward_flops(run: StageRun, model: FinishedStage) -> float:
    """Floating-point operations of a forward pass for one example."""
    lengths = run.data.mean_lengths(run.config.data)
    shape = model.facts.get("shape")  # a loaded teacher has no config.json in its directory
    shape = shape or json.loads(model.read("model/config.json").read_text())
    return forward_flops(shape, lengths.inputs, lengths.targets)


def _of_kind(run: StageRun, kind: str, ratio: str | None = None, variant: str | None = None) -> list[FinishedStage]:
    return inputs_of_kind(run.stage, run.inputs, kind, ratio, variant)


def _values(finished: list[FinishedStage], name: str) -> list[Any]:
    """The losses or answers of each of these stages, [stages][E]."""
    return [read_values(one, name) for one in finished]
