"""The long baseline: the dense model with as much training as teacher and student together.

It is the baseline at the teachers' length, trained further with the settings of the student (``distill.training``) on
hard labels. So it takes the steps of the student, with the same optimizer, schedule and order of examples, but nothing
in it comes from a teacher.
"""

from distill.models.build import count_parameters, place
from distill.training.loop import train
from distill.training.train_modules import HardLabels
from pipelines.runner.measure import answer, measure, save_results, validation_quality
from pipelines.runner.stage_data import training_examples
from pipelines.runner.stage_run import Outcome, StageRun
from students.load import load_dense


def compute(run: StageRun) -> Outcome:
    """Continue the training of the baseline, save the model, and save the loss of every evaluated example.

    Raises:
        UserError: the baseline is damaged.
        TrainingDiverged: a loss is not finite.
    """
    config, training, baseline = run.config, run.config.distill.training, run.inputs["baseline"]
    model = place(load_dense(str(baseline.read("model")), baseline.title), run.accelerator.device)
    steps = train(
        HardLabels(model),
        training_examples(run.data, config.data, seed=run.seed, batch_size=training.batch_size),
        training,
        accelerator=run.accelerator,
        directory=run.directory / "checkpoints",
        seed=run.seed,
        hooks=run.hooks(lambda: {"eval/quality": measure(run, model)[0]}, lambda: validation_quality(run, model)),
    )
    quality, losses = measure(run, model)
    save_results(run, losses, answer(run, model))
    run.save_model(model)
    parameters = count_parameters(model)
    return Outcome({"quality": quality, "parameters": parameters}, {"steps": steps, "parameters": parameters})
