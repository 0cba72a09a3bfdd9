import importlib
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from distill.errors import UserError
from pipelines.runner import load_beside as module
from pipelines.runner.load_beside import load_beside


def test_the_libraries_of_a_stage_and_the_tables_of_a_new_store_are_loaded_beside_a_block(tmp_path):
    code = """
        import sys
        from pathlib import Path
        from pipelines.runner.load_beside import load_beside
        from pipelines.tracking import store
        work = Path(sys.argv[1])
        expected = {"pipelines.stages.report", "mlflow.store.tracking.sqlalchemy_store"}
        assert not expected & sys.modules.keys()
        with load_beside(work, "report"):
            pass
        assert expected <= sys.modules.keys()
        assert store._new_database.cache_info().currsize == 1 and not any(work.iterdir())
        store.Store(work, "x")
        assert store._new_database.cache_info().misses == 1
    """
    environment = {**os.environ, "MLFLOW_TRACKING_URI": ""}  # MLflow sets it in the process of the tests
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), tmp_path], env=environment, check=True)


@pytest.fixture
def imported(monkeypatch) -> list[str]:
    """What the thread has begun to load, in order. It is not loaded."""
    begun: list[str] = []
    monkeypatch.setattr(module, "load_store", lambda workdir: begun.append("store"))
    monkeypatch.setattr(importlib, "import_module", begun.append)
    return begun


def test_a_command_of_one_stage_imports_this_stage(imported, tmp_path):
    with load_beside(tmp_path, "distill"):
        pass
    with load_beside(tmp_path, None):
        pass
    stages = [Path(name).suffix[1:] for name in imported if name != "store"]
    assert stages == ["distill", "baseline", "teacher", "init", "distill", "report"] and imported.count("store") == 2


def test_after_a_failed_block_nothing_more_is_loaded(imported, tmp_path, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()

    def wait(name):
        begun.set()
        imported.append(name)
        go_on.wait(20)

    monkeypatch.setattr(importlib, "import_module", wait)
    with pytest.raises(UserError, match="empty"), load_beside(tmp_path, None):
        begun.wait(20)
        threading.Timer(0.2, go_on.set).start()
        raise UserError("the test part is empty")
    assert imported == ["pipelines.stages.baseline"]


def test_a_failure_of_the_thread_is_left_to_the_code_that_needs_the_module(tmp_path, monkeypatch):
    def fail(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", fail)
    with load_beside(tmp_path, None):
        done = True
    assert done
