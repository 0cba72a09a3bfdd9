"""Stage 2: initialise a dense T5 student from the teacher's non-expert weights.

``student.ffn_init`` selects the initialisation of the FFNs that replace Switch layers.
"""

import torch
from transformers import T5ForConditionalGeneration

from distill.data.examples import Batch, Examples
from distill.models.build import count_parameters, place
from pipelines.runner.stage_run import Outcome, StageRun
from students.calibration import ffn_errors, record
from students.initialise import init_student_with_counts
from teachers.load import load_teacher


def compute(run: StageRun) -> Outcome:
    """Save a student that transformers can load, and measure the error of its FFNs.

    The error of each FFN that replaces a Switch layer (``students.calibration.ffn_errors``) is measured on training
    text that the calibration has not seen.

    Returns:
        The FFN errors, and the number of tensors and parameters by origin.

    Raises:
        UserError: the teacher is damaged.
        RuntimeError: the saved student does not reproduce the outputs of the student in memory.
    """
    settings = run.config.student
    teacher = place(load_teacher(run.inputs["teacher"].read("model"), run.config.teacher), run.accelerator.device)
    calibration, held_out = _calibration_text(run)
    student, counts = init_student_with_counts(
        teacher,
        ffn_init=settings.ffn_init,
        seed=run.seed,
        calibration=calibration,
        copy=settings.non_expert_init == "teacher",
    )
    errors = ffn_errors(student, record(teacher, held_out))
    run.save_model(student)
    _check_reload(run, student)
    parameters = count_parameters(student)
    metrics: dict[str, float] = {f"{kind}_{fate}": n for kind, fates in counts.items() for fate, n in fates.items()}
    metrics |= {f"ffn_error/{layer}": error for layer, error in errors.items()}
    return Outcome({**metrics, "parameters": parameters}, {**counts, "total": parameters})


def _calibration_text(run: StageRun) -> tuple[list[Batch], list[Batch]]:
    """Batches of training examples for the calibration, and of a quarter as many from the epoch's end for the error."""
    settings, size = run.config.student, run.config.teacher.evaluation_batch_size
    examples = Examples(run.data, run.config.data, seed=run.seed)
    wanted = settings.calibration_examples if settings.is_calibrated else 0
    measured = min(-(-settings.calibration_examples // 4), examples.segments)

    def batches(first: int, last: int) -> list[Batch]:
        return [examples.batch(range(start, min(start + size, last))) for start in range(first, last, size)]

    return batches(0, wanted), batches(examples.segments - measured, examples.segments)


def _check_reload(run: StageRun, student: T5ForConditionalGeneration) -> None:
    """Check that the saved student gives the same output as the student in memory. Its quality is not checked."""
    batch = Examples(run.data, run.config.data, seed=None).batch(range(1))
    reloaded = T5ForConditionalGeneration.from_pretrained(run.directory / "model", use_safetensors=True).eval()
    with torch.no_grad():
        before = student.eval()(**batch._asdict()).logits
        after = reloaded(**batch._asdict()).logits
    if not torch.equal(before, after):
        raise RuntimeError(
            f"the student saved in {run.directory / 'model'} does not reproduce the outputs of the student in memory"
        )
