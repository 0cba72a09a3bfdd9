"""What MLflow says of each student of a comparison, on its run and in the registry, and who is champion."""

from typing import Any

from pipelines.tracking.run import COLOURS, TrackedRun
from pipelines.tracking.store import Store
from pipelines.workdir.stage import Finished, Stage, of_kind

CHAMPION = "champion"


def log_comparison(tracked: TrackedRun, report: dict[str, Any], stage: Stage, inputs: dict[str, Finished]) -> None:
    """The figures by which the UI compares students, on their runs and on their registered versions.

    Args:
        tracked: the report's run.
        report: report.json.
        stage, inputs: the report's.
    """
    students, documents = [], report["data"]["test_documents"]
    told_apart = "ratio" if report["ratios"][0]["variant"] is None else "variant"  # by colour
    kinds = list(dict.fromkeys(row[told_apart] for row in report["ratios"]))
    for row in report["ratios"]:
        colour = COLOURS[kinds.index(row[told_apart]) % len(COLOURS)]
        tags = {f"comparison.{stage.fingerprint[:12]}": "1", "mlflow.runColor": colour}
        shared = {**{key: row[key] for key in ("experts", "compression")}, "test_documents": documents}
        for teacher in of_kind(stage, inputs, "teacher", row["ratio"]):
            tracked.set_tags(tags, teacher.run_id)
        students.append(of_kind(stage, inputs, "distill", row["ratio"], row["variant"]))
        for place, student in enumerate(students[-1]):
            figures = {key: row[key] for key in ("gain", "fraction_kept", "fraction_kept_long")}
            for suffix in ("", "_long"):
                low, high = row[f"fraction{suffix}_interval"] or (None, None)
                figures |= {f"fraction{suffix}_low": low, f"fraction{suffix}_high": high}
                if by_seed := row[f"fraction_kept{suffix}_by_seed"]:
                    figures[f"fraction_kept{suffix}_of_seed"] = by_seed[place]
            known = {key: value for key, value in figures.items() if value is not None}
            tracked.log_results({**shared, **known}, run_id=student.run_id, model_id=student.model_id)
            undefined = {key: "undefined" for key, value in figures.items() if value is None}
            tracked.set_tags({**tags, **undefined}, student.run_id)
    tag_students(tracked.store, report, students)


def tag_students(store: Store, report: dict[str, Any], students: list[list[Finished]]) -> None:
    """Fraction kept, compression and quality as tags of each student's version; the alias for the best of them.

    Args:
        report: report.json.
        students: of each row of the report, one per seed, each with a registered version as its URI.

    The best is the one of highest quality, which is measured on the same examples for all; it must be better than the
    baseline. The names of this comparison have the alias once, or where nothing is better not at all, whatever an
    earlier comparison said.
    """
    from pipelines.reporting.table import sample  # slow to import, and only a report needs it

    for row, of_seeds in zip(report["ratios"], students, strict=True):
        fraction, interval = row["fraction_kept"], row["fraction_interval"]
        of = sample(report["data"], row["seeds"])
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


def _champion(report: dict[str, Any], students: list[list[Finished]]) -> tuple[str, str] | None:
    """Name and version of the best student, of those rows whose mean over seeds is above the baseline's."""
    above = [row["student_quality"] > report["baseline"]["quality"] for row in report["ratios"]]
    worth = [student for of_seeds, better in zip(students, above, strict=True) if better for student in of_seeds]
    return _version(max(worth, key=lambda student: student.metrics["quality"])) if worth else None


def _version(student: Finished) -> tuple[str, str]:
    """Name and version from ``models:/NAME/VERSION``."""
    name, _, version = student.model_uri.removeprefix("models:/").rpartition("/")
    return name, version
