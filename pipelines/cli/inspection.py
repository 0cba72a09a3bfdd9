"""The output of the command ``inspect``."""

import json
from typing import Any

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from pipelines.config.run_config import RunConfig, load_config
from pipelines.workdir.commands import WORK
from pipelines.workdir.inspection import describe, inspect_model
from pipelines.workdir.stage_needs import BY_LAYER, NOT_HERE, example_lengths, machine, operations, stage_needs
from teachers.layout import STACKS

PRESET = "switch-base"  # its settings are those of a run with a loaded teacher
_SHAPE = ("num_experts", "d_model", "d_ff", "num_heads", "d_kv", "vocab_size")
_FILES = 10  # shown in a terminal


def show_model(source: str, json_: bool) -> None:
    """Print what a Switch model holds, and what the stages need with it as the teacher.

    Args:
        source: a directory, or a name on the hub that may be pinned (``NAME@REVISION``).
        json_: whether to print JSON.

    Raises:
        UserError: as for ``pipelines.workdir.inspection.inspect_model``.
    """
    facts = model_facts(source)
    if json_:
        print(json.dumps(facts, indent=2))
        return
    console = Console()
    for table in (_model_table(facts), _stage_table(facts)):
        console.print(table, highlight=False)
        console.print()
    for sentence in (*facts["differences"], *_notes(facts)):
        console.print(sentence, markup=False, highlight=False)


def model_facts(source: str) -> dict[str, Any]:
    """What ``--json`` prints. Sizes are in bytes."""
    config, model = load_config(PRESET), inspect_model(source)
    here = machine(config, WORK)
    stages = stage_needs(model, config, here["precision"], here["memory"])
    return {
        **describe(model),
        "machine": here,
        "settings": _settings(config),
        "operations_per_example": operations(model, config),
        "stages": stages,
    }


def _settings(config: RunConfig) -> dict[str, Any]:
    (inputs, targets), training = example_lengths(config), config.distill.training
    return {
        "preset": PRESET,
        "inputs": inputs,
        "targets": targets,
        "evaluation_batch_size": config.teacher.evaluation_batch_size,
        "examples_per_pass": training.examples_per_pass(1),
        "optimizer": training.optimizer,
        "labelled_examples": config.distill.num_labelled_examples,
        "num_tokens": config.distill.labels.num_tokens,
    }


def _model_table(facts: dict[str, Any]) -> Table:
    table, parameters, student = Table.grid(padding=(0, 2)), facts["parameters"], facts["student"]
    counts = {"all": "all", "non_expert": "without experts", "per_expert": "in an expert"}
    files = [
        f"{file['name']}: {decimal(file['bytes'])}, {file['tensors']:,} tensors" for file in facts["files"][:_FILES]
    ]
    if more := facts["files"][_FILES:]:
        files.append(f"and {len(more)} more: {decimal(sum(file['bytes'] for file in more))}")
    for name, lines in {
        "model": [facts["model"] + (f" at {facts['commit'][:12]}" if facts["commit"] else "")],
        **_layout_rows(facts["layout"]),
        "dtypes": [
            f"{dtype}: {decimal(found['bytes'])}, {found['tensors']:,} tensors"
            for dtype, found in facts["dtypes"].items()
        ],
        "parameters": [f"{parameters[key]:,} {name}" for key, name in counts.items()],
        "per layer": _per_layer(parameters["per_layer"]),
        "files": files,
        "init": [_init_text(facts)],
        "student": [f"{student['parameters']:,} parameters, {student['compression']:.1%} fewer"],
    }.items():
        table.add_row(name, Text("\n".join(lines), overflow="fold"))
    return table


def _layout_rows(layout: dict[str, Any]) -> dict[str, list[str]]:
    rows = {}
    for stack in STACKS:
        rows[stack] = [f"{layout[stack]['blocks']} blocks, sparse: {_ranges(layout[stack]['sparse']) or 'none'}"]
    names = {"num_experts": "experts", "num_heads": "heads", "vocab_size": "vocabulary"}
    shape = [f"{names.get(key, key)} {layout[key]:,}" for key in _SHAPE]
    tied = "tied" if layout["tied"] else "untied"
    return rows | {"shape": [", ".join([*shape, layout["activation"], tied])]}


def _per_layer(parameters: dict[str, int]) -> list[str]:
    """For each number of parameters, the blocks that have it, for example ``2,080 in encoder 0 to 5; decoder 1, 3``."""
    found: dict[int, dict[str, list[int]]] = {}
    for block, count in parameters.items():
        stack, _, index = block.partition(".block.")
        found.setdefault(count, {}).setdefault(stack, []).extend([int(index)] if index else [])
    lines = []
    for count, stacks in found.items():
        where = "; ".join(f"{stack} {_ranges(blocks)}".strip() for stack, blocks in stacks.items())
        lines.append(f"{count:,} in {where}")
    return lines


def _ranges(blocks: list[int]) -> str:
    """Indices in order, for example ``0, 2 to 11``."""
    found: list[list[int]] = []
    for block in blocks:
        if found and block == found[-1][-1] + 1:
            found[-1].append(block)
        else:
            found.append([block])
    texts = [f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in found]
    return ", ".join(texts)


def _init_text(facts: dict[str, Any]) -> str:
    reads, fetches = (decimal(facts["init"][key]) for key in ("reads", "fetches"))
    text = f"reads {reads} of {decimal(facts['bytes'])}, the tensors outside experts"
    return f"{text}; without a teacher stage, it fetches {fetches}" if facts["commit"] else text


def _stage_table(facts: dict[str, Any]) -> Table:
    table = Table("stage", "memory", "runs", "work directory", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1))
    if facts["commit"]:
        table.add_column("fetches", justify="right")
    for column in (1, 3):
        table.columns[column].justify = "right"
    for stage, needs in facts["stages"].items():
        row = [stage, decimal(needs["memory"]), _runs_text(needs), decimal(needs["work_directory"])]
        table.add_row(*row, *([decimal(needs["fetch"])] if facts["commit"] else []))
    return table


def _runs_text(needs: dict[str, Any]) -> str:
    """How a stage runs; for a teacher that does not fit in memory, also what the other way needs."""
    if needs["runs"] == BY_LAYER:
        return f"{BY_LAYER} (at once: {decimal(needs['in_memory'])})"
    if needs["runs"] == NOT_HERE and needs["by_layer"]:
        return f"{NOT_HERE} ({BY_LAYER}: {decimal(needs['by_layer'])})"
    return str(needs["runs"])


def _notes(facts: dict[str, Any]) -> list[str]:
    """Sentences on the table of the stages."""
    here, settings = facts["machine"], facts["settings"]
    return [
        f"Here a model may use {decimal(here['memory'])} of memory ({here['device']}), products are in "
        f"{here['precision']}, and {decimal(here['free_disk'])} of disk are free. The table is an estimate with the "
        f"settings of the preset {settings['preset']}: {settings['inputs']} input and {settings['targets']} target "
        f"tokens, {settings['evaluation_batch_size']} examples per batch of the teacher, "
        f"{settings['examples_per_pass']} per pass of the student, {settings['optimizer']}, "
        f"{settings['labelled_examples']:,} labelled examples. Python and its libraries need about half a GB more."
    ]
