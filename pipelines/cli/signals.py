"""SIGTERM ends a command with an exception, so that its stages end their MLflow runs and release their locks."""

import os
import signal
import sys
from threading import Timer
from typing import Any

EXIT_CODE = 128 + signal.SIGTERM
_REPEAT_AFTER = 0.05  # seconds


def exit_on_sigterm() -> None:
    """Raise SystemExit with code 143 in the main thread at every SIGTERM.

    Python drops exceptions of destructors and of callbacks from C, and prints them with a traceback. If SIGTERM arrives
    there, it is repeated instead.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_CODE))
    sys.unraisablehook = _repeat_dropped_exit


def _repeat_dropped_exit(unraisable: Any) -> None:
    if unraisable.exc_type is not SystemExit:
        sys.__unraisablehook__(unraisable)
        return
    Timer(_REPEAT_AFTER, os.kill, (os.getpid(), signal.SIGTERM)).start()  # after the callback has returned
