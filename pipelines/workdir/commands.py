"""Commands that messages suggest, as they can be pasted into a shell."""

import shlex
from pathlib import Path

WORK = Path("work")  # the work directory of a command that names none


def suggest(command: str, *words: str | Path, workdir: Path = WORK) -> str:
    """``switch-distill COMMAND WORDS --workdir DIR``, quoted for a shell.

    Args:
        words: options and texts, and paths as Path, so that one that begins with a dash is not taken for an option.
        workdir: is left out where it is the default.
    """
    where = () if workdir == WORK else ("--workdir", workdir)
    return quoted("switch-distill", command, *words, *where)


def quoted(*words: str | Path) -> str:
    """``words`` as one line for a shell; see ``suggest``."""
    plain = [f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word) for word in words]
    return shlex.join(plain)
