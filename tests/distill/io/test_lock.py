"""The lock between processes that end normally or are killed."""

import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from distill.config import DataConfig
from distill.data.prepare import prepare_data
from distill.io.lock import exclusive_lock

CONTEXT = multiprocessing.get_context("spawn")  # a fork would inherit the locks of tokenizers' threads


def count(path: Path, times: int) -> None:
    for _ in range(times):
        with exclusive_lock(path, lambda by: None):
            before = int(path.read_text())
            time.sleep(0.001)
            path.write_text(str(before + 1))


def prepare(end: Connection, config: DataConfig, directory: Path) -> None:
    said: list[str] = []
    end.send((prepare_data(config, directory, said.append).digest, said))


def hold(path: Path) -> None:
    with exclusive_lock(path, lambda by: None):
        path.touch()
        signal.pause()


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of ``tmp_path / "thing"``."""
    process = CONTEXT.Process(target=hold, args=(tmp_path / "thing",))
    process.start()
    while not (tmp_path / "thing").exists():
        time.sleep(0.01)
    yield process
    process.kill()
    process.join()


def test_no_two_processes_are_in_the_block(tmp_path):
    path = tmp_path / "number"
    path.write_text("0")
    processes = [CONTEXT.Process(target=count, args=(path, 20)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert path.read_text() == "60" and os.listdir(tmp_path) == ["number"]


def test_who_waits_is_told_for_whom_and_a_killed_process_leaves_no_lock(tmp_path, holder):
    def held(by: str) -> None:
        said.append(by)
        os.kill(holder.pid, signal.SIGKILL)

    said: list[str] = []
    with exclusive_lock(tmp_path / "thing", held):
        assert said == [f"process {holder.pid}"]
    assert os.listdir(tmp_path) == ["thing"]
    with exclusive_lock(tmp_path / "thing", held):
        assert len(said) == 1


def test_who_does_not_want_to_wait_raises(tmp_path, holder):
    def held(by: str) -> None:
        raise RuntimeError(by)

    with pytest.raises(RuntimeError, match=str(holder.pid)), exclusive_lock(tmp_path / "thing", held):
        pytest.fail("it is held")
    assert (tmp_path / ".thing.lock").exists() and holder.is_alive()


def test_directories_that_were_made_for_a_block_that_fails_are_removed(tmp_path):
    with pytest.raises(KeyError), exclusive_lock(tmp_path / "a" / "b" / "thing", lambda by: None):
        raise KeyError
    assert not os.listdir(tmp_path)


def test_two_processes_that_prepare_the_same_data_prepare_it_once(tmp_path, data_config):
    pipe, end = CONTEXT.Pipe()

    processes = [CONTEXT.Process(target=prepare, args=(end, data_config, tmp_path / "data")) for _ in range(2)]
    for process in processes:
        process.start()
    (first, one), (second, other) = pipe.recv(), pipe.recv()
    for process in processes:
        process.join()
    assert first == second and [process.exitcode for process in processes] == [0, 0]
    assert len([line for line in one + other if line.startswith("Preparing")]) == 1
    assert len(os.listdir(tmp_path / "data")) == 1
