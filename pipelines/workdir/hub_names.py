"""The names on the hub that a run reads, and the one commit of each that all of its processes take.

Each process would ask the hub for itself, and a name may move on in between: then two processes would compute two
stages, or one of them would wait for data that nobody prepares. Needs no torch.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from distill.errors import named_when_lost
from distill.io.hub import known_commits, resolve_revision, take_commits
from distill.io.hub_answers import Kind
from pipelines.config.run_config import RunConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

Names = list[tuple[str, Kind, str]]  # a source, what it is, and how messages name it


def names_on_hub(config: RunConfig) -> Names:
    """What the config names that is no local file or directory."""
    data, named = config.data, []
    if data.corpus.startswith("hf:"):
        named.append((data.corpus.removeprefix("hf:").partition(":")[0], "dataset", f"data.corpus {data.corpus!r}"))
    if data.tokenizer != "train":
        named.append((data.tokenizer, "model", f"data.tokenizer {data.tokenizer!r}"))
    if config.baseline.checkpoint:
        named.append((config.baseline.checkpoint, "model", f"baseline.checkpoint {config.baseline.checkpoint!r}"))
    named += [(source, "model", f"teacher {source!r}") for source in config.teacher.checkpoints.values()]
    return [one for one in named if not Path(one[0]).is_dir()]


@named_when_lost()
def share_commits(names: Names, accelerator: "Accelerator") -> None:
    """Let the main process find the commits, and the others take them.

    Raises:
        UserError: in the main process, there is no such name.
        LostProcess: in the others, the main process has ended for that.
    """
    from accelerate.utils import broadcast_object_list

    if accelerator.is_main_process:
        for source, kind, what in names:
            resolve_revision(source, kind, what)
    [commits] = broadcast_object_list([known_commits()])
    take_commits(commits)
