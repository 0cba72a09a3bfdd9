"""Units of work that processes share, some of which are killed."""

import hashlib
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from distill.io.units import Units

CONTEXT = multiprocessing.get_context("spawn")
FACTS = {"teacher": "t"}


def arrays_of(number: int) -> dict[str, np.ndarray]:
    return {"squares": np.arange(number + 1) ** 2, "name": np.array([number], np.uint16)}


def work(directory: Path, count: int, log: Path, seconds: float) -> None:
    """Make all units that can be claimed; a line of ``log`` for each begun and each finished one."""
    with Units(directory, count, FACTS) as units, open(log, "a") as lines:
        while (number := units.claim()) is not None:
            print("begun", number, os.getpid(), file=lines, flush=True)
            time.sleep(seconds)
            units.finish(number, arrays_of(number))
            print("finished", number, os.getpid(), file=lines, flush=True)


def started(*arguments) -> multiprocessing.Process:
    process = CONTEXT.Process(target=work, args=arguments)
    process.start()
    return process


def lines_of(log: Path, word: str) -> list[int]:
    return [int(line.split()[1]) for line in log.read_text().splitlines() if line.startswith(word)]


def until(log: Path, word: str) -> None:
    end = time.monotonic() + 120
    while not log.exists() or not lines_of(log, word):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_processes_share_all_units_and_do_none_twice(tmp_path):
    log = tmp_path / "log"
    workers = [started(tmp_path / "units", 12, log, 0.1) for _ in range(3)]
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert sorted(lines_of(log, "begun")) == sorted(lines_of(log, "finished")) == list(range(12))
    with Units(tmp_path / "units", 12, FACTS) as units:
        assert units.claim() is None and units.all_finished()
        for number in range(12):
            np.testing.assert_equal(units.read(number), arrays_of(number))


def test_the_unit_of_a_killed_process_is_done_by_another(tmp_path):
    log = tmp_path / "log"
    killed = started(tmp_path / "units", 3, log, 600)
    until(log, "begun")
    with Units(tmp_path / "units", 3, FACTS) as units:
        assert units.claim() == 1  # the other process is alive and has claimed 0
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    work(tmp_path / "units", 3, log, 0)
    assert lines_of(log, "begun") == [0, 0, 1, 2] and lines_of(log, "finished") == [0, 1, 2]


def test_a_process_that_stops_releases_its_claims(tmp_path):
    with pytest.raises(KeyboardInterrupt), Units(tmp_path / "units", 2, FACTS) as units:
        assert (units.claim(), units.claim(), units.claim()) == (0, 1, None)
        raise KeyboardInterrupt
    with Units(tmp_path / "units", 2, FACTS) as units:
        assert units.claim() == 0


def test_a_units_file_depends_on_its_content_alone_and_its_claim_has_the_digest(tmp_path):
    contents = []
    for name in ("one", "other"):
        with Units(tmp_path / name, 1, FACTS) as units:
            units.finish(units.claim(), arrays_of(0))
        content = (tmp_path / name / "00000000.npz").read_bytes()
        assert (tmp_path / name / "00000000.claim").read_text() == hashlib.sha256(content).hexdigest()
        contents.append(content)
    assert contents[0] == contents[1]


@pytest.mark.parametrize("how", ["bits", "gone", "half a digest"])
def test_a_damaged_unit_is_made_again(tmp_path, how):
    with Units(tmp_path, 2, FACTS) as units:
        for _ in range(2):
            units.finish(number := units.claim(), arrays_of(number))
    file, claim = tmp_path / "00000001.npz", tmp_path / "00000001.claim"
    if how == "bits":
        file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    elif how == "gone":
        file.unlink()
    else:
        claim.write_text(claim.read_text()[:30])
    with Units(tmp_path, 2, FACTS) as units:
        units.claim()
        assert not units.all_finished() or how == "half a digest"
        assert units.read(1) is None
    with Units(tmp_path, 2, FACTS) as units:
        assert units.claim() == 1
        units.finish(1, arrays_of(1))
        assert units.claim() is None and units.all_finished()


def test_a_unit_whose_file_is_not_needed_any_more_stays_finished(tmp_path):
    with Units(tmp_path, 1, FACTS) as units:
        units.finish(units.claim(), arrays_of(0))
        units.discard(0)
    with Units(tmp_path, 1, FACTS) as units:
        assert units.claim() is None and units.done == {0}


def test_units_of_other_facts_are_removed(tmp_path):
    with Units(tmp_path, 1, FACTS) as units:
        units.finish(units.claim(), arrays_of(0))
    with Units(tmp_path, 1, {"teacher": "another"}) as units:
        assert units.claim() == 0


def test_nothing_can_be_claimed_after_the_directory_is_gone(tmp_path):
    with Units(tmp_path / "units", 1, FACTS) as units:
        (tmp_path / "units").rename(tmp_path / "elsewhere")
        assert units.claim() is None


@pytest.mark.parametrize("others", [[], ["progress.json"]])
def test_the_directory_of_finished_work_is_removed_and_its_parent_if_empty(tmp_path, others):
    work = tmp_path / "work"
    with Units(work / "units", 1, FACTS) as units:
        for name in others:
            (work / name).touch()
        units.remove()
        units.remove()  # another process may have removed it
    assert work.exists() == bool(others) and not (work / "units").exists()
