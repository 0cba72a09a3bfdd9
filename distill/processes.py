"""What the launcher of several processes (``accelerate launch``, torchrun) tells each of them. Needs no torch."""

import os


def num_processes() -> int:
    """How many processes compute the stages of this run together; 1 where there is no launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this is the one of them that prepares data, writes files and says how far the run is."""
    return os.environ.get("RANK", "0") == "0"
