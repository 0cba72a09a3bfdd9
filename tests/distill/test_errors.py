import pytest

from distill.errors import DiskFull, ExpectedError, LostProcess, UserError, lost_process_errors
from distill.training.divergence import TrainingDiverged

GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Connection reset by peer."
NCCL = "NCCL communicator was aborted on rank 0."


def test_expected_errors_have_one_base_and_are_what_they_were_before():
    assert issubclass(UserError, ValueError) and UserError.exit_code == 2
    for kind in (DiskFull, LostProcess, TrainingDiverged):
        assert issubclass(kind, ExpectedError) and issubclass(kind, RuntimeError) and kind.exit_code == 1


@pytest.mark.parametrize("said", [GLOO, NCCL])
def test_what_gloo_and_nccl_say_of_a_lost_process_is_named_among_several_processes(monkeypatch, said):
    monkeypatch.setenv("WORLD_SIZE", "2")
    error = RuntimeError(said)
    sentence = "another process of this run has ended; run the same command again to resume"
    with pytest.raises(LostProcess, match=sentence) as caught, lost_process_errors():
        raise error
    assert caught.value.__cause__ is error
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(RuntimeError, match=r"Connection reset|aborted") as caught, lost_process_errors():
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a shape does not fit"),
        UserError("/data/gloo/a.txt is not UTF-8 text"),
        DiskFull("/data/NCCL/model cannot be written"),
        FileNotFoundError("/data/gloo/a.txt"),
        KeyError("gloo"),
    ],
)
def test_nothing_else_is_a_lost_process(monkeypatch, error):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(type(error)) as caught, lost_process_errors():
        raise error
    assert caught.value is error
