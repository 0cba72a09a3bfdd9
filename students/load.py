"""Load a dense T5."""

from transformers import T5Config, T5ForConditionalGeneration

from distill.models.load import fetch_checked, load_float32, load_shapes, read_config
from distill.models.weight_files import StoredTensors
from students.check import check_dense


def load_dense(source: str, description: str) -> T5ForConditionalGeneration:
    """Load a T5 in float32 and eval mode, whatever precision its weights are stored in.

    Args:
        source: a directory, or a name on the hub that may be pinned (``NAME@REVISION``).
        description: the name of the model in messages.

    Raises:
        UserError: ``source`` cannot be loaded as a dense T5, or its weights do not belong to its config.
    """
    directory = fetch_checked(source, description, lambda: check_dense(source, description))
    config = read_config(T5Config, str(directory), description)
    # Checkpoints of T5 also hold tied and obsolete tensors, which transformers ignores.
    return load_float32(T5ForConditionalGeneration, directory, description, config)


def check_tensors(source: str, tensors: StoredTensors, description: str) -> None:
    """Compare the tensors of a T5's files, from ``distill.models.directory.check_weights``, with its config.

    Raises:
        UserError: a tensor of the config is missing, or has another shape.
    """
    config = read_config(T5Config, source, description)
    load_shapes(T5ForConditionalGeneration, tensors, description, config)
