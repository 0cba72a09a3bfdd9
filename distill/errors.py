"""Errors that the command line reports without a traceback: the base class, and the errors of every package."""

import contextlib
from collections.abc import Iterator

from distill.processes import num_processes


class ExpectedError(Exception):
    """An error that is not a fault of this project.

    The message is one sentence with the cause and the remedy. The command line prints only the message and exits with
    ``exit_code``. Any other exception is a bug of this project, and the command line shows its traceback.
    """

    exit_code = 1


class UserError(ExpectedError, ValueError):
    """The user's input cannot be used."""

    exit_code = 2


class DiskFull(ExpectedError, RuntimeError):
    """The disk is full. The message names the path, and the space that it needs if that is known."""


class LostProcess(ExpectedError, RuntimeError):
    """Another process of this run has ended, so this process cannot continue."""


@contextlib.contextmanager
def lost_process_errors() -> Iterator[None]:
    """Convert communication errors within the block to LostProcess.

    Raises:
        LostProcess: gloo or NCCL has lost the connection to another process of this run.
    """
    try:
        yield
    except ExpectedError:
        raise
    except RuntimeError as error:
        if not _is_lost_process(error):
            raise
        raise LostProcess("another process of this run has ended; run the same command again to resume") from error


def _is_lost_process(error: RuntimeError) -> bool:
    return num_processes() > 1 and any(name in str(error) for name in ("gloo", "NCCL"))
