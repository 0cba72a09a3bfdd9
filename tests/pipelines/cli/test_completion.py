"""Completions that the shell offers after Tab, and their time."""

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.config.presets import PRESETS

ROOT = Path(__file__).parents[3]
# Fails if a completion has imported a library whose import takes seconds.
QUICK = """
import sys
from pipelines.cli.app import main
try:
    main()
finally:
    assert not {"torch", "transformers", "scipy", "mlflow"} & set(sys.modules)
"""


def complete(line: str) -> list[str]:
    """Candidates for the last word of the line, with the cursor at its end."""
    asked = {"_SWITCH_DISTILL_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    environment = {**os.environ, **asked, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", QUICK], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@pytest.mark.parametrize(
    "line, expected",
    [
        ("switch-distill run ", list(PRESETS)),
        ("switch-distill teacher t", ["task-smoke", "text", "table6", "table7", "translate"]),
        ("switch-distill run mine.y", []),  # the shell then offers files
        ("switch-distill run text --ratio ", ["e4", "e8", "e16"]),
        ("switch-distill distill text --ratio e1", ["e16"]),
        ("switch-distill run text --set teacher.experts=[3,5] --ratio ", ["e3", "e5"]),
        ("switch-distill run nonsense --ratio ", []),
        ("switch-distill run text --set nonsense --ratio ", []),
        ("switch-distill run --ratio ", []),
        ("switch-distill --v", ["--version"]),
    ],
)
def test_presets_and_ratios_are_offered(line, expected):
    assert complete(line) == expected


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_with_the_script_that_the_program_prints_also_under_python_m(tmp_path):
    """Takes less than half a second of CPU time in one of five runs; other processes share the caches."""
    program = tmp_path / "switch-distill"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pipelines.cli "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}

    def bash(code: str) -> str:
        done = subprocess.run(["bash", "-c", code], env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    script = bash("switch-distill --show-completion; exit")  # for one command, bash would replace itself by it
    ask = (
        'COMP_WORDS=(switch-distill run sm); COMP_CWORD=2; _switch_distill_completion "$COMP_WORDS"; echo "$COMPREPLY"'
    )

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert bash(f"{script}\n{ask}") == "smoke\n"
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert any(seconds() < 0.5 for _ in range(5))
    assert bash(f"{script}\ncomplete -p").split()[-1] == "switch-distill"  # and not python
