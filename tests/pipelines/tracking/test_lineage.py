"""A lineage drawn as a tree."""

import io

from rich.console import Console

from pipelines.tracking.lineage import draw


def test_brackets_in_file_names_are_not_markup():
    node = {"model": "s[0]", "run_id": None, "stage": "distill", "sha256": "d", "metrics": {"quality": -1.0}}
    node |= {"loaded": {"name": "/m/[red]x", "revision": None}, "inputs": []}
    node["datasets"] = [{"name": "text:/a/[b]*/[/x].txt", "context": "train", "digest": "d", "revision": None}]
    console = Console(width=200, file=io.StringIO())
    console.print(draw(node))
    drawn = console.file.getvalue()
    assert drawn.startswith("s[0]  quality -1.0000\n") and "loaded   /m/[red]x\n" in drawn
    assert "data     text:/a/[b]*/[/x].txt  (train)  digest d\n" in drawn
