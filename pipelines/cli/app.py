"""The commands. Each command imports its modules only when it runs, so that --help and input errors return fast."""

import errno
import gc
import json
import os
import sys
import traceback
from typing import Annotated, Any

import typer

from distill.errors import ExpectedError, UserError
from distill.io.disk import is_full
from pipelines.cli import serving as cli_serving
from pipelines.cli import stages as cli_stages
from pipelines.cli.options import Config, Json, Model, Seed, Set, Teacher, Workdir, stderr
from pipelines.cli.signals import exit_on_sigterm
from pipelines.runner.parent import end_with_parent
from pipelines.tracking.store_uri import without_credentials
from pipelines.workdir.commands import WORK

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Distil a sparse Switch Transformer into a small dense T5 that you can serve.",
)
app.add_typer(cli_stages.commands)
app.add_typer(cli_serving.commands)

# Base class of the parser's errors: typer's own, or click's in versions that use click. Typer does not export it.
_WrongUsage: Any = typer.BadParameter.__base__


def _print_version(requested: bool) -> None:
    from importlib.metadata import PackageNotFoundError, version

    if not requested:
        return
    try:
        print(f"switch-distill {version('switch-distill')}")
    except PackageNotFoundError:
        raise UserError("a clone that is not installed has no version; install it: pip install -e .") from None
    raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of the program itself, before a command."""


@app.command()
def inspect(model: Teacher, json_: Json = False) -> None:
    """Describe a Switch model from its headers alone, and the memory and disk that each stage needs with it."""
    from pipelines.cli.inspection import show_model

    show_model(model, json_)


@app.command()
def lineage(
    model: Model,
    workdir: Workdir = WORK,
    json_: Json = False,
) -> None:
    """Trace a model back to the bytes of its data, with the records in MLflow."""
    from rich.console import Console

    from pipelines.tracking.lineage import draw, read_export_lineage, read_lineage
    from pipelines.tracking.store import existing_store

    tree = read_export_lineage(model) or read_lineage(existing_store(workdir), model)
    if json_:
        print(json.dumps(tree, indent=2))
    else:
        Console(width=200).print(draw(tree), highlight=False)  # wide enough for whole digests


@app.command()
def ui(
    workdir: Workdir = WORK,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 5000,
    host: Annotated[str, typer.Option(help="Address to listen on. 0.0.0.0 means all addresses.")] = "127.0.0.1",
) -> None:
    """Start the MLflow UI on this work directory's store."""
    from pipelines.tracking.store import existing_store
    from pipelines.tracking.view import serve_ui

    serve_ui(existing_store(workdir), workdir, host, port, stderr())


@app.command()
def presets(json_: Json = False) -> None:
    """List the presets."""
    from pipelines.config.presets import PRESETS

    listed = {name: (preset.__doc__ or name).strip().splitlines()[0] for name, preset in PRESETS.items()}
    print(json.dumps(listed, indent=2) if json_ else "\n".join(f"{name:<16} {text}" for name, text in listed.items()))


@app.command("config")
def show_config(config: Config, set_: Set = None, seed: Seed = None, json_: Json = False) -> None:
    """Print the resolved config. The output is a valid CONFIG."""
    import yaml

    from pipelines.config.run_config import load_config

    values = load_config(config, set_ or [], seed).model_dump(mode="json")
    print(json.dumps(values, indent=2) if json_ else yaml.safe_dump(values, sort_keys=False), end="\n" if json_ else "")


def main() -> None:
    """Run the command line. Exit codes: 0 success, 1 internal failure, 2 input error, 130 interrupted."""
    sys.exit(_main())


def _main() -> int:
    _quiet_libraries()
    gc.set_threshold(100_000)  # libraries create millions of long-lived objects, and a full scan takes a second
    exit_on_sigterm()
    end_with_parent()
    try:
        code = app(standalone_mode=False, prog_name="switch-distill")  # completion of "python -m ..." cannot work
        if sharding := sys.modules.get("distill.training.sharding"):
            sharding.leave_process_group()
    except _WrongUsage as error:
        return _complain(f"{error.format_message()} (see --help)", 2) if error.format_message() else 2
    except ExpectedError as error:
        return _complain(str(error), 1 if is_full(error) else error.exit_code)
    except Exception as error:
        if is_full(error):
            cause = str(error).strip().split("\n")[0]
            return _complain(f"the disk is full ({cause}); free some space and run the same command again", 1)
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            return _complain(f"{str(error.filename)[:200]}… is too long for a path; choose a shorter one", 2)
        print(without_credentials(traceback.format_exc()), file=sys.stderr, end="")
        return 1
    if code == 130:
        _complain("interrupted; run the same command again to continue from the last checkpoint", 130)
    return code if isinstance(code, int) else 0


def _complain(message: str, code: int) -> int:
    print(f"switch-distill: {without_credentials(message)}", file=sys.stderr)
    return code


def _quiet_libraries() -> None:
    """Silence the output of libraries, which would hide the progress display."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "critical")  # hides its retries to reach the hub
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
