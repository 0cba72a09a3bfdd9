"""Stage 2: initialise a dense T5 student from the teacher's non-expert weights.

``student.ffn_init`` selects the initialisation of the FFNs that replace Switch layers.
"""

import gc

import torch
from transformers import T5ForConditionalGeneration

from distill.data.examples import Batch
from distill.errors import UserError
from distill.models.build import count_parameters
from distill.models.layerwise import ByLayer, States, in_memory
from pipelines.runner.stage_data import evaluated_examples, training_examples
from pipelines.runner.stage_run import Outcome, StageRun
from pipelines.stages.teacher import run_frozen
from pipelines.workdir.teacher_files import open_finished_teacher
from students.calibration import ffn_errors, record
from students.initialise import init_student_with_counts, kept_by
from students.load import load_dense


def compute(run: StageRun) -> Outcome:
    """Save a student that transformers can load.

    If FFNs are built from experts, or if ``student.measure_ffn_errors`` asks for it, the error of each FFN that
    replaces a Switch layer (``students.calibration.ffn_errors``) is measured on training text that the calibration has
    not seen, except for pairs of a source with a weight above 1. Otherwise only the non-expert tensors of the teacher
    are read.

    Returns:
        The FFN errors, and the number of tensors and parameters by origin.

    Raises:
        UserError: the teacher is damaged, or an epoch has too few examples for the calibration.
        RuntimeError: the saved student does not reproduce the outputs of the student in memory.
    """
    settings, stored = run.config.student, open_finished_teacher(run.inputs["teacher"])
    running = run_frozen(run, stored, torch.float32) if settings.reads_text else None
    layers = running.forward if running and isinstance(running.forward, ByLayer) else None
    in_place, states = (layers.in_place, layers.states) if layers else (in_memory, States)
    calibration, held_out = _calibration_text(run) if running else (None, [])
    student, counts = init_student_with_counts(
        running.model if running else stored,
        ffn_init=settings.ffn_init,
        seed=run.seed,
        calibration=calibration,
        copy=settings.non_expert_init == "teacher",
        in_place=in_place,
        states=states(),
        d_ff=settings.d_ff,
        num_decoder_layers=settings.num_decoder_layers,
    )
    errors = {}
    if running:
        kept = kept_by(running.model.config, student.config)
        errors = ffn_errors(student, record(running.model, held_out, in_place=in_place, states=states()), kept)
    run.save_model(student)
    parameters, logits = count_parameters(student), _logits(run, student)
    del student, running, layers, in_place, states  # before the saved student is loaded, to save memory
    gc.collect()  # modules refer to themselves
    _check_reload(run, logits)
    metrics: dict[str, float] = {f"{kind}_{fate}": n for kind, fates in counts.items() for fate, n in fates.items()}
    metrics |= {f"ffn_error/{layer}": error for layer, error in errors.items()}
    return Outcome({**metrics, "parameters": parameters}, {**counts, "total": parameters})


def _calibration_text(run: StageRun) -> tuple[list[Batch], list[Batch]]:
    """Batches of training examples for the calibration, and of a quarter as many from the epoch's end for the error."""
    settings, size = run.config.student, run.config.teacher.evaluation_batch_size
    examples = training_examples(run.data, run.config.data, seed=run.seed, batch_size=size)
    wanted = settings.calibration_examples if settings.is_calibrated else 0
    measured = min(-(-settings.calibration_examples // 4), len(examples))
    if wanted + measured > len(examples):
        raise UserError(
            f"student.calibration_examples is {wanted}, but an epoch has {len(examples)} training examples, and the "
            f"FFN error is measured on a quarter as many more; set it to at most {len(examples) * 4 // 5}"
        )

    def batches(first: int, last: int) -> list[Batch]:
        return [examples.batch(range(start, min(start + size, last))) for start in range(first, last, size)]

    return batches(0, wanted), batches(len(examples) - measured, len(examples))


def _check_reload(run: StageRun, logits: torch.Tensor) -> None:
    """Check that the saved student gives the ``logits`` of the student in memory. Its quality is not checked."""
    if not torch.equal(logits, _logits(run, load_dense(str(run.directory / "model"), run.stage.title))):
        raise RuntimeError(
            f"the student saved in {run.directory / 'model'} does not reproduce the outputs of the student in memory"
        )


@torch.no_grad()
def _logits(run: StageRun, student: T5ForConditionalGeneration) -> torch.Tensor:
    """The logits of one evaluated example, [1, T, vocabulary]."""
    batch = evaluated_examples(run.data, run.config.data).batch(range(1))
    return student.eval()(**batch._asdict()).logits
