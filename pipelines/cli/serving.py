"""The commands for finished students: export them, serve them, and measure how fast that is."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.options import Json, Workdir
from pipelines.workdir.commands import WORK, suggest

commands = typer.Typer()

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A run id, models:/NAME/VERSION or @ALIAS, or a directory.")
]
Text = Annotated[str | None, typer.Option(metavar="FILES", help="Text files (a glob) to verify a directory on.")]


@commands.command()
def export(
    model: Model,
    format: Annotated[str, typer.Option(help="hf, onnx, ctranslate2 or mlflow.")],
    output: Annotated[Path, typer.Option(help="A directory that does not exist yet.")],
    precision: Annotated[str, typer.Option(help="float32, or int8; onnx also has int8-except-head.")] = "float32",
    text: Text = None,
    workdir: Workdir = WORK,
    json_: Json = False,
) -> None:
    """Write a student in the format of a runtime, and verify there that it answers as before."""
    from students.export import check_format

    check_format(format, precision)  # before anything slow is imported
    from rich.console import Console

    from pipelines.deploy.export import export as run_export

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
    console.print(f"Back to the data: {suggest('lineage', output)}", markup=False, highlight=False, soft_wrap=True)


@commands.command()
def serve(
    model: Model,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 is any free one.")] = 8000,
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 is all of them.")] = "127.0.0.1",
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A host that requests may name besides --host; * is any; repeatable."),
    ] = None,
    format: Annotated[str | None, typer.Option(help="To export to first, where MODEL is no export.")] = None,
    teacher: Annotated[Path | None, typer.Option(help="A Switch teacher, for the page to compare with.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of each model; the runtime decides if not given.")] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Prompts in one batch, and in one request.")] = 32,
    max_queue: Annotated[int, typer.Option(min=1, help="Prompts that may wait; more are answered 429.")] = 256,
    max_input: Annotated[int, typer.Option(min=1, help="Tokens of a prompt.")] = 512,
    max_output: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 256,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that a request may take.")] = 60.0,
    text: Text = None,
    workdir: Workdir = WORK,
) -> None:
    """Serve a student over HTTP: OpenAI's completions, metrics, and a page to try it."""
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
    teacher: Annotated[Path | None, typer.Option(help="Its Switch teacher, to be measured too.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Of each model.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each.")] = 5,
    max_tokens: Annotated[int, typer.Option(min=1, max=256, help="Of each answer.")] = 64,
    exports: Annotated[Path | None, typer.Option(help="Keeps the exports, and reuses those that are there.")] = None,
    text: Text = None,
    workdir: Workdir = WORK,
    json_: Json = False,
) -> None:
    """Speed, latency, memory and size of every export of a student, and of the server, against plain transformers."""
    from pipelines.deploy.bench_serving import bench_serving as run
    from pipelines.deploy.bench_serving import markdown

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
        _say(markdown(result))
    print(json.dumps(result, indent=2) if json_ else markdown(result))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
