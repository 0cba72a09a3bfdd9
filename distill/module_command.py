"""The command that runs a module of this project in a new process."""

import os
import sys


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs ``module`` like ``python -m``, with the import path of this process.

    ``python -m`` searches the current directory first, where a user's own students.py would hide the package of this
    project. The new process imports the project from the same installation or clone as this process.
    """
    path = [os.path.abspath(place) for place in sys.path]
    run = f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    return [sys.executable, "-P", "-c", f"import runpy, sys; sys.path[:] = {path!a}; {run}", *arguments]
