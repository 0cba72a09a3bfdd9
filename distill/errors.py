"""The exceptions that the command line answers with their message alone, and one that has no type of its own."""

import os


class UserError(ValueError):
    """The user's input cannot be used. The message is one sentence with the cause and the cure.

    The command line prints the message alone and exits with code 2.
    """


class DiskFull(RuntimeError):
    """Something could not be written. The message says which path, how much it needs where that is known, and the cure.

    The command line prints the message alone and exits with code 1.
    """


def is_lost_process(error: Exception) -> bool:
    """Whether ``error`` says that another process of this run has ended: what gloo or NCCL says of a connection."""
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    return several and any(name in str(error) for name in ("gloo", "NCCL"))
