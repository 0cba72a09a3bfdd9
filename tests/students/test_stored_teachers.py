"""Students of teachers in files, of which no expert is read."""

import os
from pathlib import Path

import pytest
import torch

from distill.errors import UserError
from students import init_student
from tests.public_checkpoints import EXPERT, mixed, plain_model, plain_state, write_checkpoint
from tests.teachers.test_peak_memory import SIZES, large_state


def bytes_read() -> int:
    """Bytes that this process has asked the system to read until now."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.parametrize("kind,shards", [("safetensors", 1), ("safetensors", 3), ("bin", 1), ("bin", 3)])
def test_no_expert_and_no_router_is_read(tmp_path, kind, shards):
    write_checkpoint(tmp_path / "small", plain_state(plain_model()), kind, shards)
    init_student(tmp_path / "small")  # imports what it needs
    read = {}
    for experts in (2, 8):
        state = {name: value.clone() for name, value in large_state(experts, torch.bfloat16).items()}
        write_checkpoint(tmp_path / f"{experts}", state, kind, shards, **SIZES, num_experts=experts)
        sizes = {name: value.numel() * value.element_size() for name, value in state.items()}
        wanted = sum(size for name, size in sizes.items() if ".experts." not in name and ".router." not in name)
        before = bytes_read()
        init_student(tmp_path / f"{experts}")
        read[experts] = bytes_read() - before
        assert wanted <= read[experts] < wanted * 1.2, (wanted, sum(sizes.values()))
    assert read[8] - read[2] < 100_000  # headers; six experts have 12 MiB


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_student_is_that_of_the_teacher_in_memory(tmp_path, kind):
    from teachers import load_teacher

    write_checkpoint(tmp_path, plain_state(plain_model(mixed), mixed), kind, 2)
    one, other = init_student(tmp_path, seed=3), init_student(load_teacher(tmp_path), seed=3)
    assert one.dtype == other.dtype == torch.float32 and one.config.to_dict() == other.config.to_dict()
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_values_of_experts_do_not_matter_and_all_others_must_be_finite(tmp_path, kind):
    state = plain_state(plain_model())
    state[EXPERT][0, 0] = float("nan")
    write_checkpoint(tmp_path, state, kind)
    assert all(value.isfinite().all() for value in init_student(tmp_path).state_dict().values())
    state["decoder.final_layer_norm.weight"][5] = float("inf")
    write_checkpoint(tmp_path, state, kind)
    with pytest.raises(UserError, match="weights in decoder.final_layer_norm.weight that are NaN or infinite; take"):
        init_student(tmp_path)


def test_a_config_without_a_start_token_gives_a_student_with_one(tmp_path):
    write_checkpoint(tmp_path, plain_state(plain_model()), decoder_start_token_id=None)
    student = init_student(tmp_path)
    assert student.config.decoder_start_token_id == student.config.pad_token_id == 0
    student.save_pretrained(tmp_path / "student")
    assert (tmp_path / "student" / "config.json").is_file() and os.listdir(tmp_path / "student")
