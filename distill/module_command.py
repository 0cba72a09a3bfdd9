"""A module of this project in a process of its own."""

import os
import sys


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs ``module`` as ``python -m`` does, with the packages that this process imports.

    ``python -m`` looks into the current directory first. That is the user's: a students.py there is no part of this
    project. Where this process found the project, an installation or a clone, the new one finds it too.
    """
    path = [os.path.abspath(place) for place in sys.path]
    run = f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    return [sys.executable, "-P", "-c", f"import runpy, sys; sys.path[:] = {path!a}; {run}", *arguments]
