"""The part of an export's manifest that only a task has: the template of the input, and metrics of the answers."""

from typing import Any

from tokenizers import Tokenizer

from distill.errors import UserError
from distill.metrics import METRICS, check_metrics
from distill.tasks.config import TaskConfig
from distill.tasks.template import columns_of
from pipelines.deploy.export_source import HeldOut, Source
from students.runtime import encode


def task_record(
    source: Source, held_out: HeldOut, answers: list[list[int]], exported: list[list[int]]
) -> dict[str, Any] | None:
    """The facts of the student's task that users of the export need.

    Args:
        source: the student.
        held_out: the examples that were answered. The record has metrics only if they are of the task.
        answers: token ids of the answers of the student in float32, [N].
        exported: of the answers of the export, [N].

    Returns:
        ``input``, the template, or None if the sources of a mixture have different ones; ``columns``, those of the
        template; ``metrics``, name -> ``better``, ``student`` and ``export``; ``examples``, their number N; and
        ``example``, an input of the task with the student's answer, or None. None if the student has no task.
    """
    if source.task is None:
        return None
    task, tokenizer = source.task.task, Tokenizer.from_file(str(source.directory / "tokenizer.json"))
    template = input_template(task)
    columns = list(dict.fromkeys(columns_of(template or "")))
    record: dict[str, Any] = {"input": template, "columns": columns, "metrics": {}, "examples": 0, "example": None}
    if held_out.texts is None:
        return record
    of_student, of_export = (
        [tokenizer.decode(row, skip_special_tokens=True) for row in rows] for rows in (answers, exported)
    )
    references = held_out.texts.references
    for name in _usable_metrics(task.metrics):
        values = {"student": METRICS[name].value(of_student, references)}
        values |= {"export": METRICS[name].value(of_export, references)}
        record["metrics"][name] = {"better": METRICS[name].better, **values}
    # The first input that was not truncated: its answer is the one that the server gives.
    whole = (
        {"input": text, "answer": answer}
        for text, ids, answer in zip(held_out.texts.inputs, held_out.examples.inputs, of_student, strict=True)
        if encode(tokenizer, text) == ids
    )
    return {**record, "examples": len(references), "example": next(whole, None)}


def input_template(task: TaskConfig) -> str | None:
    """The template of the input; None if the sources of a mixture have different ones."""
    templates = {source.input for source in task.sources}
    return templates.pop() if len(templates) == 1 else None


def _usable_metrics(names: list[str]) -> list[str]:
    """The metrics whose libraries are installed, or exact_match if there is none."""

    def is_usable(name: str) -> bool:
        try:
            check_metrics([name])
        except UserError:
            return False
        return True

    return list(filter(is_usable, names)) or ["exact_match"]
