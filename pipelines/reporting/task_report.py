"""The values of report.json that only a task has: metrics, groups, and examples of answers.

Shapes: S seeds, E evaluated examples, K statistics of a metric.
"""

import hashlib
from typing import Any, NamedTuple

import numpy as np

from distill.metrics import METRICS, remarks
from distill.tasks.prepared import PreparedPairs, TaskExamples
from pipelines.reporting.comparison import Figure, Models, compared
from pipelines.reporting.sums import DocumentSums
from pipelines.reporting.verdict import AGAINST

KEPT_AT_LEAST = 0.3  # about what the paper's students keep; the report has the share of groups that keep it
MIN_GROUP_DOCUMENTS = 10  # groups with fewer do not count in shares of groups
_SHOWN_EXAMPLES = 10
# Hundreds of groups would take minutes with the resamples of the whole report. The ends of an interval vary by about
# 3 % of its length with this number.
_GROUP_RESAMPLES = 2000

# The answers of a model, [S][E]. A loaded teacher has those of one seed.
Answers = list[list[str]]


class TaskResults(NamedTuple):
    """The evaluated examples of a task, the answers of all models, and their figures."""

    examples: TaskExamples
    answers: Models[Answers]
    figures: dict[str, Figure]  # by metric

    @property
    def has_groups(self) -> bool:
        """Whether the examples have groups."""
        return self.examples.groups is not None

    def add_rows(self, rows: list[dict[str, Any]], quality: Figure, resamples: int) -> None:
        """Add ``metrics``, ``groups`` and ``group_shares`` to the rows of report.json.

        Args:
            rows: with a ratio and a variant each.
            quality: the figure of the losses.
            resamples: number of bootstrap samples.
        """
        sums = {name: figure.sums() for name, figure in self.figures.items()}
        for row in rows:
            key = row["ratio"], row["variant"]
            row["metrics"] = metric_values(sums, *key, resamples)
            for name, of_models in sums.items():
                by_seed = [of_models.students[key].of_seed(seed).value for seed in range(len(row["seeds"]))]
                row["metrics"][name]["student_by_seed"] = [_sign(name) * value for value in by_seed]
        if self.has_groups:
            groups = group_values(quality, self.figures, self.examples, resamples)
            for row in rows:
                row["groups"] = groups[row["ratio"], row["variant"]]
                row["group_shares"] = group_shares(row["groups"])

    def table(self) -> dict[str, list[str]]:
        """Columns of texts, with a row per evaluated example: input, reference, and the answers of the first seed.

        The teacher and the student are those of the last ratio and its first variant.
        """
        table = {"input": self.examples.inputs, "reference": self.examples.references}
        if self.examples.groups is not None:
            table["group"] = self.examples.groups
        ratio = list(self.answers.teachers)[-1]
        variant = next(variant for _, variant in self.answers.students)
        student = " ".join(filter(None, ("student", ratio, variant)))
        models = {AGAINST[suffix]: one for suffix, one in self.answers.baselines.items()}
        models |= {f"teacher {ratio}": self.answers.teachers[ratio], student: self.answers.students[ratio, variant]}
        return table | {name: of_model[0] for name, of_model in models.items()}

    def shown(self) -> list[dict[str, str]]:
        """Rows of ``table`` for report.md, with different inputs. Their hash chooses them, so that quality cannot."""
        first = {text: row for row, text in reversed(list(enumerate(self.examples.inputs)))}
        chosen = sorted(first, key=lambda text: hashlib.sha256(text.encode()).digest())[:_SHOWN_EXAMPLES]
        rows = [first[text] for text in chosen]
        return [{name: column[row] for name, column in self.table().items()} for row in rows]


def task_results(names: list[str], answers: Models[Answers], examples: TaskExamples, seeds: int) -> TaskResults:
    """The results of a task, with the figures of the metrics ``names``.

    Args:
        names: of metrics.
        answers: of all models to the evaluated examples, each with ``seeds`` lists, or one for a loaded teacher.
        examples: the evaluated examples.
        seeds: their number.
    """

    def figure(name: str) -> Figure:
        metric = METRICS[name]

        def statistics(of_model: Answers) -> np.ndarray:
            found = np.stack([metric.statistics(one, examples.references) for one in of_model])
            return np.broadcast_to(found, (seeds, *found.shape[1:]))

        return Figure(answers.map(statistics), examples.documents, metric=metric)

    return TaskResults(examples, answers, {name: figure(name) for name in names})


def metric_values(
    sums: dict[str, Models[DocumentSums]],
    ratio: str,
    variant: str | None,
    resamples: int,
    *,
    against: tuple[str, ...] = tuple(AGAINST),
) -> dict[str, dict[str, Any]]:
    """``metrics`` of a row of report.json: for each metric the values of all models, and the fraction of the gain kept.

    A gain is an improvement, also where lower is better.

    Args:
        sums: of each metric.
        ratio: of teacher and student.
        variant: of the student.
        resamples: number of bootstrap samples.
        against: suffixes of the baselines.
    """
    found = {}
    for name, of_models in sums.items():
        models = {AGAINST[suffix].replace(" ", "_"): of_models.baselines[suffix] for suffix in against}
        models |= {"teacher": of_models.teachers[ratio], "student": of_models.students[ratio, variant]}
        found[name] = {
            "better": METRICS[name].better,
            **{model: _sign(name) * one.value for model, one in models.items()},
            **compared(of_models, ratio, variant, resamples, unit=f"in {name}", against=against),
        }
    return found


def _sign(metric: str) -> int:
    """Of a metric's value in its sums, of which higher is always better."""
    return 1 if METRICS[metric].better == "higher" else -1


def group_values(
    quality: Figure, figures: dict[str, Figure], examples: TaskExamples, resamples: int
) -> dict[tuple[str, str | None], list[dict[str, Any]]]:
    """``groups`` of every row of report.json, by ratio and variant: the figures of each group, against the baseline.

    Args:
        quality: the figure of the losses.
        figures: of ``TaskResults.figures``.
        examples: the evaluated examples, with groups.
        resamples: number of bootstrap samples of the report; groups have at most 2,000.
    """
    assert examples.groups is not None
    of_example, resamples = np.array(examples.groups), min(resamples, _GROUP_RESAMPLES)
    rows: dict[tuple[str, str | None], list[dict[str, Any]]] = {key: [] for key in quality.values.students}
    for group in np.unique(of_example):
        chosen = of_example == group
        documents = len(np.unique(examples.documents[chosen]))
        sums, metrics = quality.sums(chosen), {name: figure.sums(chosen) for name, figure in figures.items()}
        for key in rows:  # the inner loop, because all rows of a group have the same resamples
            rows[key].append(
                {
                    "group": str(group),
                    "examples": int(chosen.sum()),
                    "documents": documents,
                    "too_few_documents": documents < MIN_GROUP_DOCUMENTS,
                    "baseline_quality": sums.baselines[""].value,
                    "teacher_quality": sums.teachers[key[0]].value,
                    "student_quality": sums.students[key].value,
                    **compared(sums, *key, resamples, against=("",)),
                    "metrics": metric_values(metrics, *key, resamples, against=("",)),
                }
            )
    return rows


def group_shares(groups: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares of the groups with enough documents: whose teacher gains, and whose student keeps 30 % of the gain.

    Both compare values and not intervals. The second share is of all these groups, also those without a gain.

    Args:
        groups: of one row of report.json.
    """
    counted = [one for one in groups if not one["too_few_documents"]]
    gains = [one for one in counted if one["gain"] > 0]
    keep = [one for one in gains if one["student_quality"] - one["baseline_quality"] >= KEPT_AT_LEAST * one["gain"]]
    share = 1 / len(counted) if counted else 0.0
    return {"groups": len(counted), "gain": len(gains) * share, "keep_30_percent": len(keep) * share}


def task_facts(data: PreparedPairs, split: str, task: TaskResults) -> dict[str, Any]:
    """What ``data`` of report.json has for a task: shares of truncated texts, groups, and remarks on the metrics."""
    examples = task.examples
    lengths, truncated = data.task["lengths"], data.task["truncated"]
    facts: dict[str, Any] = {
        f"truncated_{kind}": {
            part: truncated[part][place] / max(lengths[part]["examples"], 1) for part in ("train", split)
        }
        for place, kind in enumerate(("inputs", "targets"))
    }
    if examples.groups is not None:
        names, number = np.unique(examples.groups, return_inverse=True)
        pairs = np.unique(np.stack([number, examples.documents]), axis=1)
        few = np.bincount(pairs[0]) < MIN_GROUP_DOCUMENTS
        absent = sorted(set(data.task["groups"]) - set(names.tolist()))
        facts |= {"groups": len(names), "small_groups": names[few].tolist(), "groups_without_examples": absent}
    return {**facts, "remarks": remarks(list(task.figures), examples.references)}
