"""The commands for finished students: export them."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli_options import WORK, Json, Workdir

commands = typer.Typer()


@commands.command()
def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run id, models:/NAME/VERSION or @ALIAS, or a directory.")
    ],
    format: Annotated[str, typer.Option(help="hf, onnx, ctranslate2 or mlflow.")],
    output: Annotated[Path, typer.Option(help="A directory that does not exist yet.")],
    precision: Annotated[str, typer.Option(help="float32, or int8; onnx also has int8-except-head.")] = "float32",
    text: Annotated[
        str | None, typer.Option(metavar="FILES", help="Text files (a glob) to verify a directory on.")
    ] = None,
    workdir: Workdir = WORK,
    json_: Json = False,
) -> None:
    """Write a student in the format of a runtime, and verify there that it answers as before."""
    from students.export import check_format

    check_format(format, precision)  # before anything slow is imported
    from rich.console import Console

    from pipelines.export import export as run_export

    console = Console(stderr=True)
    manifest = run_export(
        model,
        output,
        format=format,
        precision=precision,
        workdir=workdir,
        text=text,
        say=lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True),
    )
    if json_:
        print(json.dumps(manifest, indent=2))
        return
    parity, size = manifest["parity"], sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    print(
        f"{output}: {size / 1e6:.1f} MB, computes in {manifest['compute_type']}; quality "
        f"{parity['quality_difference']:+.2g} nats, {parity['greedy_agreement']:.0%} of answers equal to the student's",
        flush=True,
    )
    console.print(f"Back to the data: switch-distill lineage {output}", markup=False, highlight=False, soft_wrap=True)
