"""Training to several numbers of steps in one run: a trunk that all lengths share, and a branch for each length.

The trunk has the steps in which the learning rate does not depend on the length. A branch continues from it with the
learning rates of its own length. So its model is that of a run of this length, and the trunk is trained only once.
"""

from collections.abc import Callable
from pathlib import Path

from distill.config import DistillConfig, TrainingConfig
from distill.data.cached_labels import LabelledExamples
from distill.data.examples import ExampleSet
from distill.training.checkpoint import checkpoints
from distill.training.loop import train
from distill.training.schedule import trunk_steps
from distill.training.train_modules import TrainModule
from pipelines.runner.measure import measure, validation_quality
from pipelines.runner.stage_run import StageRun


def train_to_lengths(
    run: StageRun,
    objective: TrainModule,
    examples: ExampleSet | LabelledExamples,
    training: TrainingConfig,
    prefixes: dict[int, str],
    trained: Callable[[int], None] = lambda length: None,
) -> dict[int, int]:
    """Train ``objective.model`` to each length. At the end it is the model of the greatest length.

    Args:
        run: the stage.
        objective: the training module; its model is already on its device.
        examples: training examples.
        training: settings; its number of steps is not read.
        prefixes: number of steps of each length -> what the names of its curves begin with. The trunk's begin as those
            of the greatest length do.
        trained: called in every process after each length, the shortest first, with its number of steps.

    Returns:
        By length, the number of steps taken, which is smaller after early stopping.

    Raises:
        TrainingDiverged: a loss is not finite.
    """
    model, longest = objective.model, max(prefixes)

    def evaluate() -> dict[str, float]:
        return {"eval/quality": measure(run, model)[0]}

    def leg(name: str, *, steps: int, stop: int, start: Path | None, prefix: str) -> int:
        return train(
            objective,
            examples,
            training,
            accelerator=run.accelerator,
            directory=run.directory / "checkpoints" / name,
            seed=run.seed,
            steps=steps,
            stop=stop,
            start=start,
            hooks=run.hooks(evaluate, lambda: validation_quality(run, model), prefix),
        )

    # With early stopping each length has a best step of its own, so the lengths share no steps.
    shared = not training.patience
    initial = {} if shared else {name: value.clone() for name, value in model.state_dict().items()}
    trunk, taken = None, {}
    for steps in sorted(prefixes):
        if shared and steps < longest:
            name = f"trunk-of-{steps}"
            leg(name, steps=longest, stop=trunk_steps(training, steps), start=trunk, prefix=prefixes[longest])
            trunk = checkpoints(run.directory / "checkpoints" / name)[-1]
        if not shared:
            model.load_state_dict(initial)
        taken[steps] = leg(f"to-{steps}", steps=steps, stop=steps, start=trunk, prefix=prefixes[steps])
        trained(steps)
    return taken


def train_as_student(
    run: StageRun, objective: TrainModule, examples: ExampleSet | LabelledExamples, settings: DistillConfig
) -> int:
    """Train with the steps of the student: to each of ``distill.lengths``, then to ``distill.training.steps``.

    After each shorter length, the losses of the evaluated examples are saved as ``after-STEPS-losses``. The long
    baseline has the lengths of the section ``distill``. A variant may have lengths of its own.

    Returns:
        The number of steps of the greatest length, which is smaller after early stopping.

    Raises:
        TrainingDiverged: a loss is not finite.
    """
    longest = settings.training.steps

    def trained(length: int) -> None:
        if length < longest:
            run.save_losses(measure(run, objective.model)[1], f"after-{length}-losses")

    prefixes = {length: f"after-{length}/" for length in settings.lengths} | {longest: ""}
    return train_to_lengths(run, objective, examples, settings.training, prefixes, trained)[longest]
