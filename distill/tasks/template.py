"""Templates such as ``translate to {language}: {source}``: text with names of columns in braces.

Nothing else of Python's format strings is allowed, so a template never reads attributes or calls code.
"""

import re
from collections.abc import Mapping

_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


def check_template(template: str) -> str:
    """Return ``template`` unchanged.

    Raises:
        ValueError: a brace is not closed, or a pair of braces has no name.
    """
    for found in _FIELD.finditer(template):
        if found[0] in ("{", "}"):
            raise ValueError(f"has a single {found[0]!r} at {found.start()}; write {found[0] * 2} for a brace")
        if found[1] is not None and not found[1].strip():
            raise ValueError("has braces without the name of a column; write {{}} for braces in the text")
    return template


def columns_of(template: str) -> list[str]:
    """The names of columns in a template, in order."""
    return [found[1] for found in _FIELD.finditer(template) if found[1] is not None]


def render(template: str, values: Mapping[str, str]) -> str:
    """The text of a template with the values of all its columns."""

    def replace(found: re.Match[str]) -> str:
        return values[found[1]] if found[1] is not None else found[0][0]

    return _FIELD.sub(replace, template)
