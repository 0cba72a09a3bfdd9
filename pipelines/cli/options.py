"""Options that several commands share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from distill.processes import is_main_process
from pipelines.cli.completion import complete_config, complete_ratio

if TYPE_CHECKING:
    from rich.console import Console

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A run id, models:/NAME/VERSION, models:/NAME@ALIAS, or a directory.")
]
Teacher = Annotated[
    str, typer.Argument(metavar="MODEL", help="A directory, or a name on the hub that may be pinned: NAME@REVISION.")
]
Workdir = Annotated[Path, typer.Option(help="Work directory, which holds all output.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on stdout.")]
Engine = Annotated[
    Literal["local", "ray"], typer.Option(help="What computes the stages: processes of this machine, or a Ray cluster.")
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Head of the Ray cluster, or auto for the cluster of this machine. Default: $RAY_ADDRESS, or a new one.",
    ),
]
Config = Annotated[
    str, typer.Argument(metavar="CONFIG", help="A preset's name or a YAML file.", autocompletion=complete_config)
]
Ratio = Annotated[
    str | None,
    typer.Option(help="One teacher size, for example e8. Default: all sizes.", autocompletion=complete_ratio),
]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="a.b=c", help="Override one value. Repeatable.")]
Seed = Annotated[int | None, typer.Option(min=0, max=2**31 - 1, help="Use only this seed.")]


def stderr() -> "Console":
    """A console that writes to stderr, in the main process only."""
    from rich.console import Console

    return Console(stderr=True, quiet=not is_main_process())
