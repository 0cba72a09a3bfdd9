"""Stage 3: train the student on 0.75 hard and 0.25 soft labels (section 4.2 of the paper)."""

import torch
from torch import nn
from transformers import T5ForConditionalGeneration

from distill.data import Examples
from distill.evaluation import evaluate
from distill.objectives import HardAndSoftLabels, HardLabels
from distill.seq2seq import count_parameters, freeze, place
from distill.training import train
from pipelines.run import Outcome, StageRun
from teachers.model import load_teacher


def compute(run: StageRun) -> Outcome:
    """The distilled student, and the loss of every validation example."""
    config, settings = run.config, run.config.distill
    held_out = Examples(run.data, config.data, seed=None)
    student = T5ForConditionalGeneration.from_pretrained(run.inputs["init"].model)
    place(student, run.accelerator.device)

    def measure():
        return evaluate(student, held_out, batch_size=config.teacher.evaluation_batch_size, accelerator=run.accelerator)

    train(
        _objective(run, student),
        Examples(run.data, config.data, seed=run.stage.seed),
        settings.training,
        accelerator=run.accelerator,
        directory=run.directory / "checkpoints",
        seed=run.stage.seed,
        hooks=run.hooks(lambda: measure()[0]),
    )
    quality, losses = measure()
    run.save_losses(losses)
    parameters = count_parameters(student)
    facts = {"parameters": parameters, "steps": settings.training.steps}
    return Outcome({"quality": quality, "parameters": parameters}, facts, run.save_model(student))


def _objective(run: StageRun, student: T5ForConditionalGeneration) -> nn.Module:
    """Hard and soft labels; with hard labels alone no teacher is even loaded."""
    settings = run.config.distill
    if settings.hard_fraction == 1:
        return HardLabels(student)
    teacher = load_teacher(run.inputs["teacher"].model, run.config.teacher)
    precision = torch.bfloat16 if run.accelerator.mixed_precision == "bf16" else torch.float32
    teacher = place(freeze(teacher, precision), run.accelerator.device)
    return HardAndSoftLabels(student, teacher, hard_fraction=settings.hard_fraction, temperature=settings.temperature)
