"""The teacher's answers, between stages 2 and 3: the hard labels of a student with ``distill.targets: teacher``."""

import numpy as np

from distill.tasks.answers import make_answers, read_answers, with_answers
from distill.tasks.examples import PairExamples
from distill.tasks.prepared import Pairs
from pipelines.runner.stage_data import task_data
from pipelines.runner.stage_run import Outcome, StageRun
from pipelines.stages.teacher import frozen_teacher, require_in_memory
from pipelines.workdir.teacher_files import teacher_digest


def compute(run: StageRun) -> Outcome:
    """Write the teacher's answers to all training inputs, and to inputs without targets, to ``answers/``.

    Returns:
        Their number and mean length, and the share that ends within ``task.max_target`` tokens.

    Raises:
        UserError: the teacher is damaged, or does not fit into memory.
    """
    _make(run, lead=True)
    tokens, ends = read_answers(run.directory / "answers")
    ended = float((tokens[ends - 1] == run.data.special_tokens.eos).mean())
    metrics = {"answers": len(ends), "answer_tokens": len(tokens) / len(ends), "ended_share": ended}
    return Outcome(metrics, {"answers": len(ends)})


def help_compute(run: StageRun) -> None:
    """Make a part of the answers that another command computes.

    Raises:
        UserError: the teacher is damaged, or does not fit into memory.
    """
    _make(run, lead=False)


def _make(run: StageRun, *, lead: bool) -> None:
    task, teacher, data = run.config.task, run.inputs["teacher"], task_data(run.data)
    assert task is not None
    running = frozen_teacher(run)
    require_in_memory(run, running)
    pad = data.special_tokens.pad
    parts = [PairExamples(pairs, np.arange(len(pairs.starts)), pad=pad) for pairs in _asked(run)]
    with run.accelerator.autocast():
        make_answers(
            running.model,
            [one for part in parts for one in part.inputs()],
            run.directory / "answers",
            max_length=task.max_target,
            beams=run.config.distill.beams,
            eos=data.special_tokens.eos,
            batch_size=run.config.teacher.evaluation_batch_size,
            accelerator=run.accelerator,
            origin={"teacher": teacher_digest(teacher), "data": run.data.digest},
            units=run.directory / "checkpoints" / "units",
            lead=lead,
            on_unit=run.bar.update,
        )


def answered_pairs(run: StageRun) -> Pairs | None:
    """The inputs with the teacher's answers as targets; None if the targets of the data are the hard labels.

    Raises:
        UserError: the answers are damaged.
    """
    if (found := run.inputs.get("answer")) is None:
        return None
    return with_answers(_asked(run), read_answers(found.read("answers")))


def _asked(run: StageRun) -> list[Pairs]:
    data = task_data(run.data)
    return [data.pairs(part) for part in ("train", "unlabelled") if part in data.parts]
