"""The dense model that gains are measured against, at two lengths in one run.

The baseline takes as many steps as the student (the paper's) or as the config says, the long baseline as many as
teacher and student together (the strict one). Both share the first part, in which the learning rate depends on neither
length.
"""

from pathlib import Path

from transformers import T5ForConditionalGeneration

from distill.data.examples import Examples
from distill.errors import UserError
from distill.evaluation import evaluate
from distill.models.build import build_dense, count_parameters, new_t5, place
from distill.models.load import check_tensors, fetch_checked, load_fetched
from distill.training.checkpoint import checkpoints
from distill.training.loop import train, trunk_steps
from distill.training.train_modules import HardLabels
from pipelines.runner.stage_run import Outcome, StageRun
from pipelines.workdir.plan import baseline_steps, baseline_training, long_steps
from students.check import check_dense
from students.initialise import student_config
from teachers.model import read_teacher_config


def compute(run: StageRun) -> Outcome:
    """Train the trunk, branch off the short end, go on to the long one; measure both."""
    config, training = run.config, baseline_training(run.config)
    examples = Examples(run.data, config.data, seed=run.stage.seed)
    held_out = Examples(run.data, config.data, seed=None)
    batch_size = config.teacher.evaluation_batch_size
    short, long = baseline_steps(config), long_steps(config)
    model = place(_model(run), run.accelerator.device)

    def quality() -> dict[str, float]:
        return {"eval/quality": evaluate(model, held_out, batch_size=batch_size, accelerator=run.accelerator)[0]}

    def leg(name: str, *, steps: int, stop: int, start: Path | None, prefix: str = "") -> Path:
        directory = run.directory / "checkpoints" / name
        train(
            HardLabels(model),
            examples,
            training,
            accelerator=run.accelerator,
            directory=directory,
            seed=run.stage.seed,
            steps=steps,
            stop=stop,
            start=start,
            hooks=run.hooks(quality, prefix),
        )
        return checkpoints(directory)[-1]

    trunk = leg("trunk", steps=long, stop=trunk_steps(training, short), start=None)
    measured = {}
    for steps in sorted({short, long}):  # one length where a loaded teacher took no steps
        leg(f"to-{steps}", steps=steps, stop=steps, start=trunk, prefix="short/" if steps < long else "")
        measured[steps] = evaluate(model, held_out, batch_size=batch_size, accelerator=run.accelerator)
    run.save_losses(measured[short][1], "baseline_losses")
    run.save_losses(measured[long][1], "long_baseline_losses")
    metrics = {"quality": measured[short][0], "quality_long": measured[long][0]}
    parameters = count_parameters(model)
    facts = {"steps": short, "long_steps": long, "parameters": parameters}
    run.save_model(model)
    # The saved model is the long one, so the short one's quality is not among its figures.
    return Outcome({**metrics, "parameters": parameters}, facts, not_of_model=["quality"])


def _model(run: StageRun) -> T5ForConditionalGeneration:
    words, source = run.data.words, run.config.baseline.checkpoint
    if source is None and (teachers := run.config.teacher.checkpoints):
        return new_t5(student_config(read_teacher_config(next(iter(teachers.values())))), seed=run.stage.seed)
    if source is None:
        return build_dense(run.config.model, run.data.vocab_size, pad=words.pad, eos=words.eos, seed=run.stage.seed)
    what = f"baseline.checkpoint {source!r}"
    fetched = fetch_checked(source, what, lambda: check_dense(source, what))
    # In the precision that all others are trained from, whatever it is stored in.
    model, report = load_fetched(T5ForConditionalGeneration, fetched, what)
    check_tensors(what, "missing", report["missing_keys"])
    if model.config.vocab_size < words.size:
        raise UserError(
            f"{what} has {model.config.vocab_size} words, the tokenizer {words.size}; "
            "set data.tokenizer to the checkpoint's own"
        )
    return model
