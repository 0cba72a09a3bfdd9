"""The command line in processes that are forked from one which has imported everything.

Such a process has its own environment, standard streams, signals and exit code. It differs from a new interpreter in
one thing: environment variables that a library reads during its import have no effect. A test that sets one of these
starts an interpreter, or lets the library read it again, as ``tests.hub`` does.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

ROOT = Path(__file__).parent.parent
_FORKING = multiprocessing.get_context("forkserver")
_FORKING.set_forkserver_preload(["tests.preloaded"])


class Forked:
    """A running command line, with those members of ``subprocess.Popen`` that tests use."""

    def __init__(self, code: str, arguments: Sequence[str], environment: dict[str, str] | None = None):
        """Run ``code``, which calls the entry point, with ``arguments`` and changes of the environment."""
        environment = {**os.environ, "MLFLOW_TRACKING_URI": "", "OMP_NUM_THREADS": "1", **(environment or {})}
        (stdout, its_stdout), (stderr, its_stderr) = _FORKING.Pipe(duplex=False), _FORKING.Pipe(duplex=False)
        self._process = _FORKING.Process(target=_run, args=(code, arguments, environment, its_stdout, its_stderr))
        self._process.start()
        self.pid = self._process.pid
        its_stdout.close()
        its_stderr.close()
        self.stdout, self.stderr = (os.fdopen(os.dup(pipe.fileno())) for pipe in (stdout, stderr))

    @property
    def returncode(self) -> int | None:
        """Minus the signal for a process that one has ended; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        self._process.kill()

    def communicate(self) -> tuple[str, str]:
        """The rest of the standard output and of the standard error, once the process has ended."""
        with ThreadPoolExecutor(2) as readers:
            said = tuple(readers.map(lambda stream: stream.read(), (self.stdout, self.stderr)))
        self._process.join()
        return said


def _run(
    code: str, arguments: Sequence[str], environment: dict[str, str], stdout: Connection, stderr: Connection
) -> None:
    from pipelines.tracking import store_uri

    os.environ.clear()
    os.environ.update(environment)
    for pipe, stream in (stdout, sys.stdout), (stderr, sys.stderr):
        os.dup2(pipe.fileno(), stream.fileno())
        pipe.close()
    os.chdir(ROOT)
    sys.argv = ["switch-distill", *arguments]
    store_uri.ASKED_FOR = environment["MLFLOW_TRACKING_URI"]  # which is read during the import
    signal.signal(signal.SIGINT, signal.default_int_handler)
    exec(code, {"__name__": "code"})
