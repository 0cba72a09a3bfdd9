"""Values that the shell offers when the user presses Tab. Imports no torch, so that the shell does not wait."""

import typer

from distill.errors import UserError


def complete_config(incomplete: str) -> list[str]:
    """Names of the presets that start with ``incomplete``. If there are none, the shell offers files."""
    from pipelines.config.presets import PRESETS

    return [name for name in PRESETS if name.startswith(incomplete)]


def complete_ratio(context: typer.Context, incomplete: str) -> list[str]:
    """Ratios that start with ``incomplete``, of the CONFIG before ``--ratio``. None if CONFIG is missing or invalid."""
    from pipelines.config.run_config import load_config

    # The parser stops at a last word --ratio, which lacks its value. CONFIG is then among the words it has not parsed.
    config = context.params.get("config") or next(iter(context.args), "")
    try:
        resolved = load_config(config, context.params.get("set_") or [])
    except UserError:
        return []
    return [ratio for ratio in resolved.teacher.ratios if ratio.startswith(incomplete)]
