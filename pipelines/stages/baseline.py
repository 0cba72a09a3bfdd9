"""The dense model that gains are measured against, at two lengths in one run.

The baseline takes as many steps as the student (the paper's baseline), or ``baseline.steps``. The long baseline takes
as many steps as teacher and student together (the strict baseline). Both share the trunk, the first steps, in which the
learning rate does not depend on the length.
"""

from transformers import T5ForConditionalGeneration

from distill.models.build import build_dense, count_parameters, new_t5, place
from distill.training.train_modules import HardLabels
from pipelines.runner.lengths import train_to_lengths
from pipelines.runner.measure import answer, measure, save_results
from pipelines.runner.stage_data import training_examples
from pipelines.runner.stage_run import Outcome, StageRun
from pipelines.workdir.plan import baseline_steps, baseline_training, long_steps
from students.initialise import student_config
from students.load import load_dense
from teachers.load import open_non_experts


def compute(run: StageRun) -> Outcome:
    """Train the trunk, then the short and the long baseline from it, and measure the quality of both.

    Raises:
        UserError: ``baseline.checkpoint`` cannot be loaded, or its vocabulary is smaller than the tokenizer's.
        TrainingDiverged: a loss is not finite.
    """
    config, training = run.config, baseline_training(run.config)
    examples = training_examples(run.data, config.data, seed=run.seed, batch_size=training.batch_size)
    short, long = baseline_steps(config), long_steps(config)
    model = place(_model(run), run.accelerator.device)
    measured, answers, taken = {}, {}, {}

    def trained(length: int, steps: int) -> None:
        taken[length], measured[length], answers[length] = steps, measure(run, model), answer(run, model)

    # The two lengths are equal if no teacher is trained and the baseline takes the student's steps.
    train_to_lengths(run, HardLabels(model), examples, training, {short: "short/", long: ""}, trained)
    for steps, prefix in ((short, "baseline_"), (long, "long_baseline_")):
        save_results(run, measured[steps][1], answers[steps], prefix)
    metrics = {"quality": measured[short][0], "quality_long": measured[long][0]}
    parameters = count_parameters(model)
    facts = {"steps": taken[short], "long_steps": taken[long], "parameters": parameters}
    run.save_model(model)
    # The saved model is the long baseline, so "quality", which is the short baseline's, does not describe it.
    return Outcome({**metrics, "parameters": parameters}, facts, not_of_model=["quality"])


def _model(run: StageRun) -> T5ForConditionalGeneration:
    special_tokens, source = run.data.special_tokens, run.config.baseline.checkpoint
    if pretrained := run.inputs.get("pretrained"):
        return load_dense(str(pretrained.read("model")), pretrained.title)
    if source is None and (teachers := run.config.teacher.checkpoints):
        return new_t5(student_config(open_non_experts(next(iter(teachers.values()))).config), seed=run.seed)
    if source is None:
        ids = {"pad": special_tokens.pad, "eos": special_tokens.eos}
        return build_dense(run.config.model, run.data.vocab_size, **ids, seed=run.seed)
    return load_dense(source, f"baseline.checkpoint {source!r}")
