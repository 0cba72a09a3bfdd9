"""Metrics and tags of the students of a comparison in MLflow, on their runs and in the registry, and the champion."""

from typing import Any

from pipelines.tracking.store import Store
from pipelines.tracking.tracked_run import COLOURS, TrackedRun
from pipelines.workdir.stage import FinishedStage, Stage, inputs_of_kind

CHAMPION = "champion"


def log_comparison(tracked: TrackedRun, report: dict[str, Any], stage: Stage, inputs: dict[str, FinishedStage]) -> None:
    """Log the metrics by which the UI compares students, on their runs and on their registered versions.

    Args:
        tracked: the report's run.
        report: the values of report.json.
        stage: the report's stage.
        inputs: role -> record of the stages that the report reads.

    Raises:
        StoreError: the store fails.
    """
    students, documents = [], report["data"]["test_documents"]
    coloured_by = "ratio" if report["ratios"][0]["variant"] is None else "variant"
    groups = list(dict.fromkeys(row[coloured_by] for row in report["ratios"]))
    for row in report["ratios"]:
        colour = COLOURS[groups.index(row[coloured_by]) % len(COLOURS)]
        tags = {f"comparison.{stage.fingerprint[:12]}": "1", "mlflow.runColor": colour}
        shared = {**{key: row[key] for key in ("experts", "compression")}, "test_documents": documents}
        for teacher in inputs_of_kind(stage, inputs, "teacher", row["ratio"]):
            tracked.set_tags(tags, teacher.run_id)
        students.append(inputs_of_kind(stage, inputs, "distill", row["ratio"], row["variant"]))
        for place, student in enumerate(students[-1]):
            figures = {key: row[key] for key in ("gain", "fraction_kept", "fraction_kept_long")}
            for suffix in ("", "_long"):
                low, high = row[f"fraction{suffix}_interval"] or (None, None)
                figures |= {f"fraction{suffix}_low": low, f"fraction{suffix}_high": high}
                if by_seed := row[f"fraction_kept{suffix}_by_seed"]:
                    figures[f"fraction_kept{suffix}_of_seed"] = by_seed[place]
            figures |= _metric_figures(row, place)
            known = {key: value for key, value in figures.items() if value is not None}
            tracked.log_results({**shared, **known}, run_id=student.run_id, model_id=student.model_id)
            undefined = {key: "undefined" for key, value in figures.items() if value is None}
            tracked.set_tags({**tags, **undefined}, student.run_id)
    tag_students(tracked.store, report, students)


def _metric_figures(row: dict[str, Any], seed: int) -> dict[str, float | None]:
    """The metrics of one student of a task, by its place among the seeds, and the fractions that its row keeps."""
    figures: dict[str, float | None] = {}
    for name, of in row.get("metrics", {}).items():
        figures |= {name: of["student_by_seed"][seed], f"{name}_gain": of["gain"]}
        figures |= {f"{name}_{key}": of[key] for key in ("fraction_kept", "fraction_kept_long")}
    return figures


def tag_students(store: Store, report: dict[str, Any], students: list[list[FinishedStage]]) -> None:
    """Set fraction kept, compression and quality as tags of each student's version, and the champion alias.

    The champion is the student of highest quality among the rows whose mean over seeds is better than the baseline. All
    qualities are measured on the same examples. Champion aliases of earlier comparisons under the same registered names
    are removed. If no row is better than the baseline, there is no champion.

    Args:
        report: the values of report.json.
        students: for each row of the report the students, one per seed, each with a registered version as its URI.

    Raises:
        StoreError: the store fails.
    """
    from pipelines.reporting.table import describe_sample  # slow to import, and only a report needs it

    for row, of_seeds in zip(report["ratios"], students, strict=True):
        fraction, interval = row["fraction_kept"], row["fraction_interval"]
        of = describe_sample(report["data"], row["seeds"])
        bounds = "undefined" if interval is None else f"[{interval[0]:.4f}, {interval[1]:.4f}] of {of}"
        for student in of_seeds:
            tags = {
                "fraction_kept": "undefined" if fraction is None else f"{fraction:.4f}",
                "fraction_interval": bounds,
                "compression": f"{row['compression']:.4f}",
                "quality": f"{student.metrics['quality']:.4f}",
            }
            for key, value in tags.items():
                store.client.set_model_version_tag(*_version(student), key, value)
    best, version = _champion(report, students) or (None, None)
    for name in {_version(student)[0] for of_seeds in students for student in of_seeds} - {best}:
        if CHAMPION in store.client.get_registered_model(name).aliases:
            store.client.delete_registered_model_alias(name, CHAMPION)
    if best:
        store.client.set_registered_model_alias(best, CHAMPION, version)


def _champion(report: dict[str, Any], students: list[list[FinishedStage]]) -> tuple[str, str] | None:
    """Name and version of the best student among the rows whose mean over seeds is better than the baseline."""
    above = [row["student_quality"] > report["baseline"]["quality"] for row in report["ratios"]]
    worth = [student for of_seeds, better in zip(students, above, strict=True) if better for student in of_seeds]
    return _version(max(worth, key=lambda student: student.metrics["quality"])) if worth else None


def _version(student: FinishedStage) -> tuple[str, str]:
    """Registered name and version of a student, from its URI ``models:/NAME/VERSION``."""
    assert student.model_uri is not None  # a student is published before its report
    name, _, version = student.model_uri.removeprefix("models:/").rpartition("/")
    return name, version
