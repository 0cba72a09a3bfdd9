"""Errors of pydantic as one sentence that names the key, the value and what is allowed."""

import difflib
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from distill.tasks.config import EXAMPLES_TAGS

_TAGS = ("[key]", *EXAMPLES_TAGS)  # parts of pydantic's locations that are not keys


def error_sentence(config: type[BaseModel], error: ValidationError) -> str:
    """One sentence on the first problem of a config, with the number of further problems."""
    problems = error.errors()
    first = problems[0]
    key = ".".join(str(part) for part in first["loc"] if part not in _TAGS)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        allowed = list(_fields_at(config, first["loc"][:-1]))
        close = difflib.get_close_matches(str(first["loc"][-1]), allowed, n=1)
        hint = f"did you mean {close[0]}?" if close else f"allowed keys: {', '.join(allowed)}"
        return f"there is no key {key}; {hint}{more}"
    if first["type"] == "missing":
        return f"{key} is missing; add it, or start from a preset (preset: demo){more}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{key}: {message}{more}".removeprefix(": ")
    if first["type"] == "model_type":
        return f"{key} is {shown(first['input'])}; it must be a section with its own keys{more}"
    return f"{key} is {shown(first['input'])}; {message[0].lower()}{message[1:]}{more}"


def shown(value: Any) -> str:
    """The first 80 characters of a value."""
    try:
        return f"{value!r:.80}"
    except ValueError:  # Python does not convert integers of more than 4,300 digits to text
        return "a number with thousands of digits"


def _fields_at(config: type[BaseModel], location: tuple[int | str, ...]) -> dict[str, Any]:
    """The fields of the section at a location of a config; empty if it is not a section."""
    section: type[BaseModel] | None = config
    for part in location:
        if section is not None and isinstance(part, str) and part not in _TAGS:
            section = _section_of(section.model_fields[part].annotation)
    return {} if section is None else section.model_fields


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field has, alone or as one of several types, or in a list."""
    if inner := get_args(annotation):
        return next(filter(None, map(_section_of, inner)), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
