"""The long baseline: the dense model with as much training as teacher and student together.

It is the baseline at the teachers' length, trained further with the settings of the student (``distill.training``) on
hard labels. So it takes the steps of the student, with the same optimizer, schedule and order of examples, but nothing
in it comes from a teacher. It is also measured after each of ``distill.lengths``.
"""

from distill.models.build import count_parameters, place
from distill.training.train_modules import HardLabels
from pipelines.runner.lengths import train_as_student
from pipelines.runner.measure import answer, measure, save_results
from pipelines.runner.stage_data import training_examples
from pipelines.runner.stage_run import Outcome, StageRun
from students.load import load_dense


def compute(run: StageRun) -> Outcome:
    """Continue the training of the baseline, save the model, and save the losses of all evaluated examples.

    Raises:
        UserError: the baseline is damaged.
        TrainingDiverged: a loss is not finite.
    """
    config, settings, baseline = run.config, run.config.distill, run.inputs["baseline"]
    model = place(load_dense(str(baseline.read("model")), baseline.title), run.accelerator.device)
    examples = training_examples(run.data, config.data, seed=run.seed, batch_size=settings.training.batch_size)
    steps = train_as_student(run, HardLabels(model), examples, settings)
    quality, losses = measure(run, model)
    save_results(run, losses, answer(run, model))
    run.save_model(model)
    parameters = count_parameters(model)
    return Outcome({"quality": quality, "parameters": parameters}, {"steps": steps, "parameters": parameters})
