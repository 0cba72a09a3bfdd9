"""The values of a config before validation: from presets, YAML files, recipes and overrides."""

import difflib
import os
import re
from pathlib import Path
from typing import Any

from distill.errors import UserError
from pipelines.config.error_sentence import shown
from pipelines.config.presets import PRESETS
from pipelines.config.recipes import RECIPES
from pipelines.config.safe_yaml import parse_yaml, read_yaml


def read_values(source: str) -> dict[str, Any]:
    """The values of a preset or of a YAML file, on top of the preset and the recipe that the file names.

    Raises:
        UserError: there is no such preset or file, or the file is not a mapping in YAML.
    """
    if source in PRESETS:
        return PRESETS[source]()
    path = Path(source)
    if not os.path.isfile(path):  # Path.is_file raises OSError if the name is too long
        close = difflib.get_close_matches(source, PRESETS, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise UserError(f"CONFIG {source!r:.200} is neither a preset ({', '.join(PRESETS)}) nor a file{hint}")
    try:
        values = read_yaml(path)
    except ValueError as error:
        raise UserError(f"{source} is not readable YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{source} must hold keys and values at its top level, such as 'teacher:'")
    preset, recipe = values.pop("preset", None), values.pop("recipe", None)
    values = {"name": re.sub(r"[^A-Za-z0-9_-]", "-", path.stem).lstrip("_-")[:64] or "run", **values}
    base: dict[str, Any] = {}
    if preset is not None:
        base = _named("preset", preset, PRESETS, source)()
    if recipe is not None:
        base = merge(base, _named("recipe", recipe, RECIPES, source))
    return merge(base, values)


def _named(kind: str, name: Any, known: dict[str, Any], source: str) -> Any:
    if not isinstance(name, str) or name not in known:
        raise UserError(f"{source}: {kind} is {shown(name)}; use one of {', '.join(known)}")
    return known[name]


def merge(base: Any, changes: Any) -> Any:
    """Merge sections key by key and replace values. ``checkpoints`` counts as one value."""
    if not (isinstance(base, dict) and isinstance(changes, dict)):
        return changes
    merged = {key: value if key == "checkpoints" else merge(base.get(key), value) for key, value in changes.items()}
    return base | merged


def override_value(values: dict[str, Any], override: str) -> None:
    """Apply one override ``a.b=value``, in place. ``recipe=NAME`` merges a recipe.

    Raises:
        UserError: it has another form, or its value is not YAML.
    """
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"--set {override!r} must look like a.b=value")
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"--set {key}: {text!r:.80} is not a YAML value: {error}") from None
    if key == "recipe":
        values |= merge(values, _named("recipe", value, RECIPES, "--set"))
        return
    *sections, last = key.split(".")
    for section in sections:
        inner = values.get(section, {})
        if not isinstance(inner, dict):
            raise UserError(f"--set {key}: {section} is a value, not a section")
        values[section] = values = dict(inner)  # a copy, because a YAML alias may share the section
    values[last] = value
