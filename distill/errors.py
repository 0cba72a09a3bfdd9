"""What the command line answers with a sentence alone: one base class, and the kinds that every package may raise."""

import contextlib
from collections.abc import Iterator

from distill.processes import num_processes


class ExpectedError(Exception):
    """Something that happens although this project does what it should.

    The message is one sentence: the cause, and what to do.
    The command line prints the message alone and exits with ``exit_code``. What is no ExpectedError is a mistake of
    ours, and is shown with its traceback.
    """

    exit_code = 1


class UserError(ExpectedError, ValueError):
    """The user's input cannot be used."""

    exit_code = 2


class DiskFull(ExpectedError, RuntimeError):
    """Something could not be written. The message says which path, and how much it needs where that is known."""


class LostProcess(ExpectedError, RuntimeError):
    """Another process of this run has ended, so that this one waits for it in vain."""


@contextlib.contextmanager
def lost_process_errors() -> Iterator[None]:
    """Say of whatever fails within the block because another process of this run has ended that this is so.

    Raises:
        LostProcess: in place of what gloo or NCCL says of a connection.
    """
    try:
        yield
    except ExpectedError:
        raise
    except RuntimeError as error:
        if not _is_lost_process(error):
            raise
        raise LostProcess(
            "another process of this run has ended; the same command goes on from what was saved"
        ) from error


def _is_lost_process(error: RuntimeError) -> bool:
    return num_processes() > 1 and any(name in str(error) for name in ("gloo", "NCCL"))
