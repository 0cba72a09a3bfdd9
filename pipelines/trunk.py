"""The dense model that baseline and teachers go on from, where a config has one."""

from distill.data import Examples
from distill.evaluation import evaluate
from distill.objectives import HardLabels
from distill.seq2seq import build_dense, count_parameters, place
from distill.training import train
from pipelines.run import Outcome, StageRun


def compute(run: StageRun) -> Outcome:
    """A dense model of the baseline's shape, trained from scratch on hard labels; the loss of every held-out example.

    The longer it is, the less another student's worth of steps teaches the baseline, and the more of a teacher's gain
    is its experts'.
    """
    config, words = run.config, run.data.words
    held_out = Examples(run.data, config.data, seed=None)
    model = build_dense(config.model, run.data.vocab_size, pad=words.pad, eos=words.eos, seed=run.stage.seed)
    place(model, run.accelerator.device)

    def measure():
        return evaluate(model, held_out, batch_size=config.teacher.evaluation_batch_size, accelerator=run.accelerator)

    train(
        HardLabels(model),
        Examples(run.data, config.data, seed=run.stage.seed),
        config.trunk,
        accelerator=run.accelerator,
        directory=run.directory / "checkpoints",
        seed=run.stage.seed,
        hooks=run.hooks(lambda: {"eval/quality": measure()[0]}),
    )
    quality, losses = measure()
    run.save_losses(losses)
    parameters = count_parameters(model)
    facts = {"parameters": parameters, "steps": config.trunk.steps}
    return Outcome({"quality": quality, "parameters": parameters}, facts, run.save_model(model))
