"""Options that several commands share."""

from pathlib import Path
from typing import Annotated, Literal

import typer

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
