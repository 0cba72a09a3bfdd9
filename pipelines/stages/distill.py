"""Stage 3: train the student on hard and soft labels, by default 0.75 hard and 0.25 soft (section 4.2 of the paper)."""

from transformers import T5ForConditionalGeneration

from distill.data.cached_labels import CachedLabels, LabelledExamples
from distill.data.examples import ExampleSet
from distill.errors import UserError
from distill.models.build import count_parameters, place
from distill.training.train_modules import HardAndCachedLabels, HardAndSoftLabels, HardLabels, TrainModule
from pipelines.runner.lengths import train_as_student
from pipelines.runner.measure import answer, measure, save_results
from pipelines.runner.stage_data import training_examples
from pipelines.runner.stage_run import Outcome, StageRun
from pipelines.stages.answer import answered_pairs
from pipelines.stages.teacher import frozen_teacher


def compute(run: StageRun) -> Outcome:
    """Train the student, save it, and save the loss of every evaluated example, also for each of ``distill.lengths``.

    Raises:
        UserError: an input is damaged.
        TrainingDiverged: a loss is not finite.
    """
    settings = run.config.distill
    student = T5ForConditionalGeneration.from_pretrained(run.inputs["init"].read("model"), use_safetensors=True)
    place(student, run.accelerator.device)
    steps = train_as_student(run, *_objective_and_examples(run, student), settings)
    quality, losses = measure(run, student)
    save_results(run, losses, answer(run, student))
    parameters = count_parameters(student)
    facts = {"parameters": parameters, "steps": steps}
    run.save_model(student)
    return Outcome({"quality": quality, "parameters": parameters}, facts)


def _objective_and_examples(
    run: StageRun, student: T5ForConditionalGeneration
) -> tuple[TrainModule, ExampleSet | LabelledExamples]:
    """The training module and its examples. Loads a teacher only if the module needs its logits."""
    config, settings = run.config, run.config.distill
    answered = answered_pairs(run)

    def examples(seed: int) -> ExampleSet:
        size = settings.training.batch_size
        return training_examples(run.data, config.data, seed=seed, batch_size=size, answered=answered)

    mix = settings.model_dump(include={"hard_fraction", "balance", "temperature", "soft_start"})
    if settings.reads_cached_labels:
        labels = CachedLabels(run.inputs["label"].read("labels/labels.json").parent)
        labelled = LabelledExamples(examples(settings.labels.seed), labels)
        return HardAndCachedLabels(student, **mix), labelled
    if not settings.runs_teacher:
        return HardLabels(student), examples(run.seed)
    running = frozen_teacher(run, divided=settings.expert_parallel)
    if running.streamed:
        raise UserError(
            f"teacher {run.ratio} does not fit into memory, so it cannot run at each step; set distill.soft_labels to "
            "cached, or raise teacher.memory"
        )
    return HardAndSoftLabels(student, running.model, **mix), examples(run.seed)
