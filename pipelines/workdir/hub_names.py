"""The names on the hub that a run reads, and the one commit of each name that all of its processes use.

If each process resolved a name by itself, the name could move to another commit in between. Then two processes would
compute different stages, or one would wait for data that no process prepares. Imports no torch.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from distill.errors import lost_process_errors
from distill.io.hub import known_commits, resolve_revision, take_commits
from distill.io.hub_answers import Kind
from pipelines.config.run_config import RunConfig, load_config

if TYPE_CHECKING:
    from accelerate import Accelerator

Names = list[tuple[str, Kind, str]]  # source, its kind, and its name in messages


def names_on_hub(config: RunConfig) -> Names:
    """The sources that the config and its pre-training name and that are not local directories."""
    data = config.data
    named: Names = []
    if config.task is None:
        sources = {data.corpus: "data.corpus"}
    else:
        sources = {one.source: "task.examples" for one in config.task.sources}
        sources |= {config.task.unlabelled: "task.unlabelled"} if config.task.unlabelled else {}
    named += [
        (source.removeprefix("hf:").partition(":")[0], "dataset", f"{key} {source!r}")
        for source, key in sources.items()
        if source.startswith("hf:")
    ]
    if data.tokenizer != "train":
        named.append((data.tokenizer, "model", f"data.tokenizer {data.tokenizer!r}"))
    if config.baseline.checkpoint:
        named.append((config.baseline.checkpoint, "model", f"baseline.checkpoint {config.baseline.checkpoint!r}"))
    named += [(source, "model", f"teacher {source!r}") for source in config.teacher.checkpoints.values()]
    before = names_on_hub(load_config(config.pretrained)) if config.pretrained else []
    return [one for one in named if not Path(one[0]).is_dir()] + before


@lost_process_errors()
def share_commits(names: Names, accelerator: "Accelerator") -> None:
    """Resolve the commits of ``names`` in the main process and send them to all others.

    Raises:
        UserError: in the main process, if a name does not exist.
        LostProcess: in the other processes, if the main process has ended because of that error.
    """
    from accelerate.utils import broadcast_object_list

    if accelerator.is_main_process:
        for source, kind, description in names:
            resolve_revision(source, kind, description)
    [commits] = broadcast_object_list([known_commits()])
    take_commits(commits)
