"""The examples of a stage: of the corpus, or of the task."""

from typing import TYPE_CHECKING

from distill.config import DataConfig
from distill.data.prepared_data import PreparedData, PreparedText
from distill.errors import UserError
from distill.tasks.prepared import Pairs, PreparedPairs

if TYPE_CHECKING:
    from distill.data.examples import ExampleSet


def training_examples(
    data: PreparedData, config: DataConfig, *, seed: int, batch_size: int, answered: Pairs | None = None
) -> "ExampleSet":
    """Training examples in an order that is a function of ``seed``, and for pairs of ``batch_size``.

    Args:
        data: a corpus, or the pairs of a task.
        config: the settings of the examples.
        seed: of the order, and of span corruption.
        batch_size: examples per optimizer step.
        answered: pairs with the teacher's answers, which replace the training pairs of the task.
    """
    if isinstance(data, PreparedText):
        from distill.data.examples import Examples

        return Examples(data, config, seed=seed)
    from distill.tasks.examples import TrainingPairs

    assert isinstance(data, PreparedPairs)
    pairs, pad = data.pairs("train") if answered is None else answered, data.special_tokens.pad
    weights = [*data.task["weights"], 1.0]  # the last one is that of unlabelled inputs
    return TrainingPairs(pairs, pad=pad, seed=seed, batch_size=batch_size, weights=weights)


def evaluated_examples(data: PreparedData, config: DataConfig) -> "ExampleSet":
    """The examples of ``config.eval_split`` that every model is evaluated on.

    Raises:
        UserError: the split has no examples.
    """
    if isinstance(data, PreparedText):
        from distill.data.examples import Examples

        return Examples(data, config, seed=None)
    from distill.tasks.examples import PairExamples

    assert isinstance(data, PreparedPairs)
    rows = data.evaluated_rows(config)
    if not len(rows):
        raise UserError(f"the {config.eval_split} part of {data.name} is empty; use more pairs or a larger fraction")
    return PairExamples(data.pairs(config.eval_split), rows, pad=data.special_tokens.pad)


def task_data(data: PreparedData) -> PreparedPairs:
    """The data of a run with a task."""
    assert isinstance(data, PreparedPairs)
    return data
