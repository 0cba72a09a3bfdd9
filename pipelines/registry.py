"""What the registry says of each student of a comparison, and which of them is the champion."""

from typing import Any

from pipelines.stage import Finished
from pipelines.tracking import Store

CHAMPION = "champion"


def tag_students(store: Store, report: dict[str, Any], students: dict[str, list[Finished]]) -> None:
    """Fraction kept, compression and quality as tags of each student's version; the alias for the best of them.

    Args:
        report: report.json.
        students: of each ratio of the report, one per seed, each with a registered version as its URI.

    The best is the one of highest quality, which is measured on the same examples for all. Only one of the names of
    this comparison keeps the alias.
    """
    for row in report["ratios"]:
        fraction, interval = row["fraction_kept"], row["fraction_interval"]
        for student in students[row["ratio"]]:
            tags = {
                "fraction_kept": "undefined" if fraction is None else f"{fraction:.4f}",
                "fraction_interval": "undefined" if interval is None else f"[{interval[0]:.4f}, {interval[1]:.4f}]",
                "compression": f"{row['compression']:.4f}",
                "quality": f"{student.metrics['quality']:.4f}",
            }
            for key, value in tags.items():
                store.client.set_model_version_tag(*_version(student), key, value)
    everyone = [student for group in students.values() for student in group]
    best, version = _version(max(everyone, key=lambda student: student.metrics["quality"]))
    for name in {_version(student)[0] for student in everyone} - {best}:
        if CHAMPION in store.client.get_registered_model(name).aliases:
            store.client.delete_registered_model_alias(name, CHAMPION)
    store.client.set_registered_model_alias(best, CHAMPION, version)


def _version(student: Finished) -> tuple[str, str]:
    """Name and version from ``models:/NAME/VERSION``."""
    name, _, version = student.model_uri.removeprefix("models:/").rpartition("/")
    return name, version
