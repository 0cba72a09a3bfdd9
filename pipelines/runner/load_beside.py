"""Load the libraries of stages and the store while the data is prepared.

Both take seconds. Most of the preparation is tokenisation, which runs outside the interpreter.
"""

import importlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from pipelines.tracking.store import load_store

_STAGES = ("baseline", "teacher", "init", "distill", "report")  # label adds no library to these


@contextmanager
def load_beside(workdir: Path, kind: str | None) -> Iterator[None]:
    """Import the stages of ``kind``, or all of them, and load the store, in a thread beside the block.

    The block should not import modules that the thread imports: two threads can meet in a circle of imports, and then
    Python gives one of them an unfinished module.

    If the block fails, the thread ends after the module that it has begun. A failure of the thread is dropped, because
    the import is repeated where the module is needed.
    """
    with ThreadPoolExecutor(1, "load") as thread:
        for stage in [kind] if kind else _STAGES:
            thread.submit(importlib.import_module, f"pipelines.stages.{stage}")
        thread.submit(load_store, workdir)
        try:
            yield
        except BaseException:
            thread.shutdown(cancel_futures=True)
            raise
