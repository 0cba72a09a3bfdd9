"""Stage 2: a dense T5 student from the teacher's non-expert weights; the FFNs of Switch layers start fresh."""

import torch
from transformers import T5ForConditionalGeneration

from distill.data import Examples
from distill.seq2seq import count_parameters
from pipelines.run import Outcome, StageRun
from students.initialise import init_student_with_counts
from teachers.model import load_teacher


def compute(run: StageRun) -> Outcome:
    """A saved student that transformers loads, and how many tensors and parameters came from where."""
    teacher = load_teacher(run.inputs["teacher"].model, run.config.teacher)
    student, counts = init_student_with_counts(teacher, ffn_init=run.config.student.ffn_init, seed=run.stage.seed)
    path = run.save_model(student)
    _check_reload(run, student)
    parameters = count_parameters(student)
    metrics = {f"{kind}_{fate}": n for kind, fates in counts.items() for fate, n in fates.items()}
    return Outcome({**metrics, "parameters": parameters}, {**counts, "total": parameters}, path)


def _check_reload(run: StageRun, student: T5ForConditionalGeneration) -> None:
    """The saved student gives the same output as the one in memory. This says that it is whole, not that it is good."""
    batch = Examples(run.data, run.config.data, seed=None).batch(range(1))
    reloaded = T5ForConditionalGeneration.from_pretrained(run.directory / "model").eval()
    with torch.no_grad():
        before = student.eval()(**batch._asdict()).logits
        after = reloaded(**batch._asdict()).logits
    if not torch.equal(before, after):
        raise RuntimeError(
            f"the student saved in {run.directory / 'model'} does not give the outputs that it gave before"
        )
