"""The commands for finished students: export, serve, and benchmark."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.options import Json, Model, Workdir
from pipelines.workdir.commands import WORK, suggest

commands = typer.Typer()

Text = Annotated[
    str | None,
    typer.Option(metavar="FILES", help="Text files (a glob) for the verification of a model that is in no store."),
]


@commands.command()
def export(
    model: Model,
    format: Annotated[str, typer.Option(help="Format: hf, onnx, ctranslate2 or mlflow.")],
    output: Annotated[Path, typer.Option(help="Directory of the export. It must not exist yet.")],
    precision: Annotated[
        str, typer.Option(help="float32; onnx and ctranslate2 also have int8, and onnx int8-except-head.")
    ] = "float32",
    text: Text = None,
    workdir: Workdir = WORK,
    json_: Json = False,
) -> None:
    """Write a student in the format of a runtime, and verify that the export gives the student's answers."""
    from rich.console import Console

    from pipelines.deploy.export import export_student

    console = Console(stderr=True)
    manifest = export_student(
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
    trace = f"Trace the student to its data: {suggest('lineage', output)}"
    console.print(trace, markup=False, highlight=False, soft_wrap=True)


@commands.command()
def serve(
    model: Model,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 selects a free port.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on. 0.0.0.0 means all addresses.")] = "127.0.0.1",
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Host name that requests may have, besides --host. * means any. Repeatable."),
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="Format of the export of a MODEL that is not an export. Default: hf.")
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="Directory of a Switch teacher. The web page shows its answers too.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of each model. Default: the runtime's own.")
    ] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Maximum number of prompts in a batch and in a request.")] = 32,
    max_queue: Annotated[
        int, typer.Option(min=1, help="Maximum number of waiting prompts. Other requests get status 429.")
    ] = 256,
    max_input: Annotated[int, typer.Option(min=1, help="Maximum number of tokens of a prompt.")] = 512,
    max_output: Annotated[int, typer.Option(min=1, help="Maximum number of tokens of an answer.")] = 256,
    timeout: Annotated[float, typer.Option(min=0.1, help="Time limit of a request in seconds.")] = 60.0,
    text: Text = None,
    workdir: Workdir = WORK,
) -> None:
    """Serve a student over HTTP: OpenAI's completions API, metrics, and a web page to try the model."""
    from pipelines.deploy.serve import serve_model
    from students.serving.limits import Limits

    limits = Limits(
        max_batch=max_batch, max_queue=max_queue, max_input=max_input, max_output=max_output, timeout=timeout
    )
    serve_model(
        model,
        teacher,
        host,
        port,
        allowed_hosts=allowed_host or [],
        format=format,
        workdir=workdir,
        text=text,
        limits=limits,
        threads=threads,
        say=_say,
    )


@commands.command("bench-serving")
def bench_serving(
    model: Model,
    teacher: Annotated[
        Path | None, typer.Option(help="Directory of the Switch teacher, which is measured too.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each model.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Number of rounds of measurement.")] = 5,
    max_tokens: Annotated[int, typer.Option(min=1, max=256, help="Number of tokens of each answer.")] = 64,
    exports: Annotated[
        Path | None, typer.Option(help="Directory in which exports are kept for reuse. Default: a temporary directory.")
    ] = None,
    text: Text = None,
    workdir: Workdir = WORK,
    json_: Json = False,
) -> None:
    """Compare speed, latency, memory and size of every export and of the server with plain transformers."""
    from pipelines.deploy.bench_serving import bench_serving as run
    from pipelines.deploy.bench_serving import markdown_table

    result = run(
        model,
        teacher,
        text=text,
        exports=exports,
        workdir=workdir,
        threads=threads,
        rounds=rounds,
        max_tokens=max_tokens,
        say=_say,
    )
    if json_:
        _say(markdown_table(result))
    print(json.dumps(result, indent=2) if json_ else markdown_table(result))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
