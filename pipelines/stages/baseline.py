"""The dense model that gains are measured against, at two lengths in one run.

The baseline takes as many steps as the student (the paper's baseline), or ``baseline.steps``. The saved model takes as
many as the teachers. If teachers are trained, the stage long-baseline continues from it.
"""

from transformers import T5ForConditionalGeneration

from distill.models.build import build_dense, count_parameters, new_t5, place
from distill.training.train_modules import HardLabels
from pipelines.runner.lengths import train_to_lengths
from pipelines.runner.measure import answer, measure, save_results
from pipelines.runner.stage_data import training_examples
from pipelines.runner.stage_run import Outcome, StageRun
from students.initialise import student_config
from students.load import load_dense
from teachers.load import open_non_experts


def compute(run: StageRun) -> Outcome:
    """Train to both lengths with the settings of the teachers, and measure the quality after each.

    Raises:
        UserError: ``baseline.checkpoint`` cannot be loaded, or its vocabulary is smaller than the tokenizer's.
        TrainingDiverged: a loss is not finite.
    """
    config, training = run.config, run.config.baseline_training
    examples = training_examples(run.data, config.data, seed=run.seed, batch_size=training.batch_size)
    short, full = config.baseline_steps, training.steps
    model = place(_model(run), run.accelerator.device)
    measured = {}

    def trained(length: int) -> None:
        measured[length], losses = measure(run, model)
        answers = answer(run, model)
        for own, prefix in ((short, "baseline_"), (full, "full_")):
            if length == own:
                save_results(run, losses, answers, prefix)
        if length == full:
            run.save_model(model)

    taken = train_to_lengths(run, HardLabels(model), examples, training, {short: "short/"} | {full: ""}, trained)
    parameters = count_parameters(model)
    facts = {"steps": taken[short], "full_steps": taken[full], "parameters": parameters}
    metrics = {"quality": measured[short], "quality_full": measured[full], "parameters": parameters}
    # The saved model has the full length, so "quality", which may be another length's, does not describe it.
    return Outcome(metrics, facts, not_of_model=["quality"])


def _model(run: StageRun) -> T5ForConditionalGeneration:
    special_tokens, source, d_ff = run.data.special_tokens, run.config.baseline.checkpoint, run.config.baseline.d_ff
    if pretrained := run.inputs.get("pretrained"):
        return load_dense(str(pretrained.read("model")), pretrained.title)
    if source is None and (teachers := run.config.teacher.checkpoints):
        shape = student_config(open_non_experts(next(iter(teachers.values()))).config)
        shape.d_ff = d_ff or shape.d_ff
        return new_t5(shape, seed=run.seed)
    if source is None:
        ids = {"pad": special_tokens.pad, "eos": special_tokens.eos}
        model = run.config.model.model_copy(update={"d_ff": d_ff or run.config.model.d_ff})
        return build_dense(model, run.data.vocab_size, **ids, seed=run.seed)
    return load_dense(source, f"baseline.checkpoint {source!r}")
