"""A child command ends when its parent command ends, even if the parent is killed and cannot stop the child.

The child requests this itself after its start. The alternative, code between fork and exec (``preexec_fn``), can hang
in a process with threads.
"""

import os
import signal
import sys

PARENT = "SWITCH_DISTILL_PARENT"  # environment variable: process id of the command that has started this one
_PARENT_DIES = 1  # Linux's PR_SET_PDEATHSIG


def end_with_parent() -> None:
    """Request a SIGTERM for the end of the parent that the environment names. Without one, or off Linux, do nothing.

    The variable is removed from the environment, because the children of this process have another parent.

    Raises:
        SystemExit: the parent has already ended; the code is 143, as after SIGTERM.
    """
    parent = os.environ.pop(PARENT, None)
    if parent is None or sys.platform != "linux":
        return
    import ctypes  # only child commands need it

    ctypes.CDLL(None).prctl(_PARENT_DIES, signal.SIGTERM)
    # The kernel signals only an end after this call. If the parent ended before it, this process has a new parent.
    if str(os.getppid()) != parent:
        sys.exit(143)
