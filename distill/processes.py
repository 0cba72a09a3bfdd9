"""The environment that a launcher (``accelerate launch``, torchrun) gives to each process. Does not import torch."""

import os


def num_processes() -> int:
    """Number of processes that compute the stages of this run together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this is the main process, which prepares data, writes files and reports progress."""
    return os.environ.get("RANK", "0") == "0"
