import pytest

from distill.processes import is_main_process, num_processes


def test_without_a_launcher_there_is_one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    assert num_processes() == 1 and is_main_process()


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_the_process_of_rank_0_is_the_main_one(monkeypatch, rank):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", str(rank))
    assert num_processes() == 4 and is_main_process() == (rank == 0)
