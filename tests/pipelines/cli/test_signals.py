"""SIGTERM ends a command with code 143 and no traceback, wherever it arrives."""

import subprocess
import sys

import pytest

IN_A_DESTRUCTOR = """
class Killed:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
Killed()
time.sleep(30)
"""
IN_PLAIN_CODE = "os.kill(os.getpid(), signal.SIGTERM); time.sleep(30)"


@pytest.mark.parametrize("code", [IN_A_DESTRUCTOR, IN_PLAIN_CODE])
def test_sigterm_ends_the_process(code):
    start = "import os, signal, time\nfrom pipelines.cli.signals import exit_on_sigterm\nexit_on_sigterm()\n"
    done = subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (143, "")


def test_other_dropped_exceptions_are_still_shown():
    code = "from pipelines.cli.signals import exit_on_sigterm\nexit_on_sigterm()\n"
    code += "class Broken:\n    def __del__(self):\n        raise ValueError('seen')\nBroken()\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "ValueError: seen" in done.stderr
