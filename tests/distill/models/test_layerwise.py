"""The pass by layer compared with ``hidden_states``, bit for bit."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from distill.errors import DiskFull
from distill.models.layerwise import ByLayer, States, by_batch, in_memory, run_by_block, state_bytes
from distill.models.t5_forward import hidden_states
from teachers.build import build_teacher, switch_layers
from teachers.config import TeacherConfig
from tests.distill.models.test_t5_forward import build

D = 32
CPU = torch.device("cpu")


@pytest.fixture
def batches():
    """Seven batches of three lengths, some with padding: of targets alone, of inputs alone, and of both."""
    torch.manual_seed(1)
    sizes = [(3, 21, 9), (3, 21, 9), (2, 21, 9), (3, 17, 9), (3, 17, 12), (1, 21, 12), (3, 21, 9)]
    found = [(torch.randint(2, 50, (b, s)), torch.randint(2, 50, (b, t))) for b, s, t in sizes]
    found[1][1][0, -2:] = -100
    found[3][0][2, 5:] = 0
    found[4][0][:2, -3:], found[4][1][1:, -7:] = 0, -100
    return found


def by_layer(tmp_path, in_place=in_memory, memory=2**30, slice_bytes=2**30) -> ByLayer:
    return ByLayer(in_place, memory=memory, slice_bytes=slice_bytes, directory=tmp_path)


def ignore(done):
    pass


@pytest.mark.parametrize("feed_forward,tied", [("relu", True), ("gated-gelu", False)])
@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("memory", [0, 12_000, 2**30])
@torch.no_grad()
def test_outputs_are_the_same_bytes_as_those_of_hidden_states(tmp_path, batches, feed_forward, tied, bfloat16, memory):
    model = build(feed_forward, tied).eval()
    forward = by_layer(tmp_path, memory=memory, slice_bytes=state_bytes(D, batches[:3]))
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        found = list(forward(model, iter(batches), ignore))
        for output, batch in zip(found, batches, strict=True):
            hidden, head = hidden_states(model, *batch)
            assert torch.equal(output.hidden, hidden) and output.hidden.dtype == hidden.dtype
            assert output.head is head and torch.equal(output.input_ids, batch[0])
            assert torch.equal(output.labels, batch[1])


@torch.no_grad()
def test_a_teacher_routes_the_tokens_that_it_routes_in_hidden_states(tmp_path, batches, shape):
    """With a small capacity, a token that was routed differently would displace others."""
    settings = TeacherConfig(experts=[4], capacity_factor_eval=1.0)
    model = build_teacher(shape, settings, 50, 4, pad=0, eos=1, seed=0).eval()
    for output, batch in zip(by_layer(tmp_path)(model, batches, ignore), batches, strict=True):
        assert torch.equal(output.hidden, hidden_states(model, *batch)[0])
        assert switch_layers(model)[0][1].statistics.dropped_fraction > 0


def test_each_block_is_put_in_place_once_per_slice_in_its_order(tmp_path, batches):
    model, seen = build().eval(), []

    @contextmanager
    def in_place(block):
        seen.append(block)
        yield
        seen.append(f"after {block}")

    forward = by_layer(tmp_path, in_place, slice_bytes=state_bytes(D, batches[:3]))
    order = [f"encoder.block.{i}" for i in range(3)] + [f"decoder.block.{i}" for i in range(2)]
    one = [text for block in order for text in (block, f"after {block}")]
    outputs = forward(model, batches, ignore)
    for _ in range(3):
        next(outputs)
    assert seen == one  # the second slice has not begun
    assert len(list(outputs)) == 4 and seen == one * 3  # batches 0 to 2, 3 to 5 (smaller), and 6


def test_an_output_does_not_keep_the_states_of_its_slice(tmp_path, batches):
    for output in by_layer(tmp_path)(build().eval(), batches, ignore):
        assert output.hidden.untyped_storage().nbytes() == output.hidden.nbytes


def test_a_slice_has_at_least_one_batch(tmp_path, batches):
    assert len(list(by_layer(tmp_path, slice_bytes=1)(build().eval(), batches, ignore))) == 7


def test_no_batches_give_no_outputs(tmp_path):
    model = build().eval()
    assert list(by_layer(tmp_path)(model, [], ignore)) == list(by_batch(model, [], ignore)) == []


def test_progress_counts_blocks_as_parts_of_batches(tmp_path, batches):
    seen = []
    list(by_layer(tmp_path, slice_bytes=state_bytes(D, batches[:3]))(build().eval(), batches, seen.append))
    assert seen[:6] == pytest.approx([0.6, 1.2, 1.8, 2.4, 3.0, 3.6]) and seen[-1] == 7 and len(seen) == 15


def test_the_caller_runs_with_its_own_settings_between_blocks(tmp_path, batches):
    model = build().eval()
    with torch.autocast("cpu", torch.bfloat16):
        for _ in run_by_block(model, batches, States(), in_memory):
            assert torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
        for output in by_layer(tmp_path)(model, batches, ignore):
            assert torch.is_grad_enabled() and not output.hidden.requires_grad


@pytest.mark.parametrize("memory,on_disk", [(2**20, 0), (400, 4), (0, 6)])
def test_states_exceeding_the_memory_are_in_a_file_without_a_name(tmp_path, memory, on_disk):
    torch.manual_seed(0)
    values = {number: torch.randn(5, 10) for number in range(6)}  # 200 bytes each
    with States(memory, tmp_path) as states:
        states.reserve(6 * 200)
        for key, value in values.items():
            states.put(key, value)
        assert [slot.in_memory for slot in states._slots.values()].count(False) == on_disk and list(
            tmp_path.iterdir()
        ) == []
        states.put(5, values[5].bfloat16())  # replaces a larger one
        values[5] = values[5].bfloat16()
        for key in (5, 0, 3, 1, 2, 4):
            assert torch.equal(states.get(key, CPU), values[key])
        file = states._file
        assert (file is None) == (on_disk == 0)
    assert file is None or file.closed


def test_a_disk_without_space_for_the_states_is_found_before_the_first_block(tmp_path, batches, monkeypatch):
    needed = state_bytes(D, batches)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=needed - 1001))
    seen = []

    def in_place(block):
        seen.append(block)
        return in_memory(block)

    with pytest.raises(DiskFull, match="running the teacher layer by layer needs about .* or raise teacher.memory"):
        list(by_layer(tmp_path, in_place, memory=1000)(build().eval(), batches, ignore))
    assert not seen
    assert len(list(by_layer(tmp_path, memory=1001)(build().eval(), batches, ignore))) == 7


def test_a_disk_that_fills_up_is_reported(tmp_path, batches, small_disk, monkeypatch):
    disk = small_disk(8192)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**9))  # as in an outdated check
    with pytest.raises(DiskFull, match="cannot be written, the disk is full"):
        list(by_layer(disk, memory=0)(build().eval(), batches, ignore))
