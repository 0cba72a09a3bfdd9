"""Commands that messages suggest, quoted so that users can paste them into a shell."""

import shlex
from pathlib import Path

WORK = Path("work")  # the default of --workdir


def suggest(command: str, *words: str | Path, workdir: Path = WORK) -> str:
    """``switch-distill COMMAND WORDS --workdir DIR``, quoted for a shell.

    Args:
        words: options and other text as str, and paths as Path. A Path that starts with a dash gets the prefix
            ``./``, so that the command line does not parse it as an option.
        workdir: omitted from the command if it is the default.
    """
    where = () if workdir == WORK else ("--workdir", workdir)
    return quoted("switch-distill", command, *words, *where)


def quoted(*words: str | Path) -> str:
    """``words`` as one shell command; see ``suggest``."""
    plain = [f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word) for word in words]
    return shlex.join(plain)
