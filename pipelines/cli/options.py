"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Workdir = Annotated[Path, typer.Option(help="Where everything goes.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")]
