"""A command that another command has started ends with it, even where that one is killed and can pass nothing on.

The new process asks for this itself: code between fork and exec (``preexec_fn``) can hang where threads run.
"""

import os
import signal
import sys

PARENT = "SWITCH_DISTILL_PARENT"  # the process id of the command that has started this one
_PARENT_DIES = 1  # Linux's PR_SET_PDEATHSIG


def end_with_parent() -> None:
    """Where the environment names a parent, end by SIGTERM when it ends. Elsewhere than on Linux, do nothing.

    What this process starts does not see the name: its parent is another.

    Raises:
        SystemExit: 143, as after SIGTERM: the parent has ended already.
    """
    parent = os.environ.pop(PARENT, None)
    if parent is None or sys.platform != "linux":
        return
    import ctypes  # here, because most commands have no such parent

    ctypes.CDLL(None).prctl(_PARENT_DIES, signal.SIGTERM)
    # The kernel tells only of an end that comes after this call; who has lost its parent before has got another.
    if str(os.getppid()) != parent:
        sys.exit(143)
