"""The text of a request that gives the columns of a task in place of a prompt."""

import math
from typing import Any

from distill.tasks.template import columns_of, render
from students.serving.models import Model
from students.serving.schema import RequestError


def render_inputs(model: Model, inputs: dict[str, Any]) -> str:
    """The text of the model's template with the values of its columns.

    Args:
        model: the model that is asked.
        inputs: column -> a text or a number.

    Raises:
        RequestError: the model has no template, or the columns or values do not fit it (400).
    """
    if model.template is None:
        raise _error(f"{model.name} has no template of its inputs; send the whole text as prompt")
    columns = list(dict.fromkeys(columns_of(model.template)))
    known = ", ".join(columns) or "none"
    for name in columns:
        if name not in inputs:
            raise _error(f"inputs has no {name}; the columns of the template are {known}")
    for name, value in inputs.items():
        if name not in columns:
            raise _error(f"inputs has the unknown column {name[:60]!r}; the columns of the template are {known}")
        if type(value) not in (str, int, float) or (isinstance(value, float) and not math.isfinite(value)):
            raise _error(f"inputs.{name} must be a text or a number")
    text = render(model.template, {name: str(value) for name, value in inputs.items()})
    if not text.strip():
        raise _error("inputs gives an empty text; give a text in its columns")
    return text


def _error(message: str) -> RequestError:
    return RequestError(400, message, param="inputs")
