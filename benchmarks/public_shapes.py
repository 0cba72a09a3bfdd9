"""Memory, disk and time for each public Switch checkpoint: ``python -m benchmarks.public_shapes``.

``switch-distill inspect`` reads files with the tensors of each checkpoint. They have real headers, but no values: their
bodies are holes, which take no disk space. The tables are Markdown, for docs/scaling.md.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from rich.filesize import decimal

from distill.models.weight_files import BYTES, INDEXES
from teachers.layout import LAYERS, Layout, expected_shapes, sparse_blocks

EXAMPLES = 1_280_000  # labelled: 10,000 steps of 128 examples
DISK, COMPUTE = 5e9, 1e14  # bytes and floating-point operations per second
STATES = (50e9, 100e9, 200e9, 400e9)  # memory for the states of a slice


class Public(NamedTuple):
    """The shape of a public checkpoint. It has ReLU and tied embeddings unless it says otherwise."""

    experts: int
    d_model: int
    d_ff: int
    blocks: int  # of the encoder, and of the decoder
    heads: int
    every: int = 2  # every n-th block is sparse
    dtype: str = "F32"
    gated: bool = False
    routers: str | None = None  # dtype of the encoder's routers, if it differs
    config: dict[str, Any] = {}  # entries of config.json that do not describe the tensors
    size: str = "-"  # on the hub

    @property
    def layout(self) -> Layout:
        """Its layout."""
        sizes = {"vocab_size": 32128, "d_model": self.d_model, "d_kv": 64, "d_ff": self.d_ff, "num_heads": self.heads}
        sizes |= {"relative_attention_num_buckets": 32, "num_experts": self.experts}
        sizes |= {"num_layers": self.blocks, "num_decoder_layers": self.blocks}
        sparse = sparse_blocks(self.blocks, self.blocks // self.every)
        return Layout(sizes, {stack: sparse for stack in LAYERS}, gated=self.gated, has_head=False)


def _base(experts: int, size: str, **changes: Any) -> Public:
    return Public(experts, 768, 3072, 12, 12, size=size, **changes)


CHECKPOINTS = {
    "switch-base-8": _base(8, "1.24 GB", dtype="BF16", routers="F32"),
    "switch-base-16": _base(16, "4.29 GB"),
    "switch-base-32": _base(32, "7.91 GB"),
    "switch-base-64": _base(64, "15.3 GB"),
    "switch-base-128": _base(128, "29.9 GB"),
    "switch-base-256": _base(256, "58.9 GB"),
    "switch-large-128": Public(128, 1024, 4096, 24, 16, dtype="BF16", size="52.7 GB"),
    "switch-xxl-128": Public(128, 4096, 10240, 24, 64, dtype="BF16", gated=True),
    "switch-c-2048": Public(
        *(2048, 2080, 6144, 15, 30),
        every=1,
        dtype="BF16",
        config={"num_decoder_layers": 12, "num_sparse_decoder_layers": 15},
        size="3.1 TB",
    ),
}


def write_holes(directory: Path, public: Public) -> None:
    """Write a checkpoint with the headers of its safetensors files, one per block, and holes for their values."""
    directory.mkdir(parents=True)
    files: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
    for name, shape in expected_shapes(public.layout).items():
        block, _, rest = name.partition(".layer.")
        files[f"model-{block if rest else 'other'}.safetensors"][name] = shape
    for file, shapes in files.items():
        header, end = {}, 0
        for name, shape in shapes.items():
            is_kept = public.routers and "encoder" in name and ".router." in name
            dtype = public.routers if is_kept and public.routers else public.dtype
            start, end = end, end + BYTES[dtype] * math.prod(shape)
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        with open(directory / file, "wb") as opened:
            opened.write(len(text).to_bytes(8, "little") + text)
        os.truncate(directory / file, 8 + len(text) + end)
    parts = {name: file for file, shapes in files.items() for name in shapes}
    (directory / INDEXES[0]).write_text(json.dumps({"weight_map": parts}))
    config = {**public.layout.sizes, "model_type": "switch_transformers", "dense_act_fn": "relu"}
    config |= {f"num_sparse_{stack}_layers": len(blocks) for stack, blocks in public.layout.sparse.items()}
    config |= {"dense_act_fn": "gated-gelu"} if public.gated else {}
    config |= {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, **public.config}
    (directory / "config.json").write_text(json.dumps(config))


def inspect(directory: Path) -> dict[str, Any]:
    """What ``switch-distill inspect --json`` prints."""
    command = [sys.executable, "-m", "pipelines.cli", "inspect", str(directory), "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def sizes_table(found: dict[str, dict[str, Any]]) -> list[str]:
    """Lines of the table of sizes."""
    header = ["checkpoint", "parameters", "files", "files on the hub", "`init` reads", "teacher", "layer by layer"]
    header += ["student", "distill", "with cached labels", "work directory"]
    rows = []
    for name, facts in found.items():
        stages, parameters = facts["stages"], facts["parameters"]["all"]
        label, distill, cached = (stages[stage] for stage in ("label", "distill", "distill, cached labels"))
        rows.append(
            [
                f"`{name}`",
                _count(parameters),
                _size(facts["bytes"]),
                CHECKPOINTS[name].size,
                decimal(facts["init"]["reads"]),
                decimal(label["in_memory"]),
                decimal(label["by_layer"]),
                f"{_count(facts['student']['parameters'])} ({facts['student']['compression']:.1%} fewer)",
                decimal(distill["in_memory"]),
                decimal(cached["in_memory"]),
                decimal(sum(stages[stage]["work_directory"] for stage in ("init", "distill", "baseline"))),
            ]
        )
    return _markdown(header, rows)


def times_table(found: dict[str, dict[str, Any]]) -> list[str]:
    """Lines of the table of times."""
    rows = []
    for name, facts in found.items():
        teacher, student = (facts["operations_per_example"][model] for model in ("teacher", "student"))
        rows.append(
            [
                f"`{name}`",
                _duration(facts["bytes"] / DISK),
                f"{teacher / 1e12:.2f}",
                f"{student / 1e12:.2f}",
                _duration(EXAMPLES * teacher / COMPUTE),
                _duration(EXAMPLES * (teacher + 3 * student) / COMPUTE),
            ]
        )
    header = ["checkpoint", "one pass over the files", "teacher, TFLOP", "student, TFLOP", "label", "distill"]
    return _markdown(header, rows)


def slices_table(facts: dict[str, Any]) -> list[str]:
    """Lines of the table of slices of a teacher that runs layer by layer."""
    settings, experts = facts["settings"], expert_bytes(facts)
    per_example = 4 * facts["layout"]["d_model"] * (settings["inputs"] + settings["targets"])
    rows = []
    for memory in STATES:
        examples = int(memory // per_example)
        slices = -(-EXAMPLES // examples)
        rows.append(
            [
                decimal(int(memory)),
                f"{examples:,}",
                f"{slices:,}",
                f"{slices * experts / 1e12:,.0f} TB",
                _duration(slices * experts / DISK),
            ]
        )
    return _markdown(["memory for states", "examples per slice", "slices", "experts read", "reading"], rows)


def expert_bytes(facts: dict[str, Any]) -> int:
    """Bytes of all experts in their files."""
    return facts["bytes"] - facts["init"]["reads"]


def main() -> None:
    """Print the tables."""
    with tempfile.TemporaryDirectory() as root:
        found = {}
        for name, public in CHECKPOINTS.items():
            write_holes(Path(root) / name, public)
            found[name] = inspect(Path(root) / name)
    print("\n".join([*sizes_table(found), "", *times_table(found), "", *slices_table(found["switch-c-2048"])]))
    for name, facts in found.items():
        print(f"\n{name}: {facts['machine']['precision']}; {'; '.join(facts['differences'])}", file=sys.stderr)


def _markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    lines = [header, [":---", *["---:"] * (len(header) - 1)], *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _count(number: int) -> str:
    return f"{number / 1e9:,.1f}B" if number >= 1e9 else f"{number / 1e6:,.1f}M"


def _size(number: int) -> str:
    return f"{number / 1e12:.3g} TB" if number >= 1e12 else f"{number / 1e9:.3g} GB"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


if __name__ == "__main__":
    main()
