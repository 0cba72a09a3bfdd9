"""Teachers layer by layer compared with the same teachers in memory."""

import threading
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from benchmarks.checkpoints import RandomExamples, Size, write_checkpoint
from benchmarks.streaming import Task, in_new_process
from distill.config import LabelsConfig, ModelConfig
from distill.data.make_labels import make_labels
from distill.errors import UserError
from distill.evaluation import negative_log_perplexity
from distill.models.layerwise import by_batch
from distill.models.read_tensors import TensorReader
from distill.models.t5_forward import hidden_states
from distill.training.loop import make_accelerator
from distill.training.precision import multiplies_bfloat16
from teachers import save_teacher
from teachers.build import build_teacher, switch_layers
from teachers.config import SwitchConfig, TeacherConfig
from teachers.load import open_teacher, read_teacher
from teachers.memory import needs
from teachers.needs import BatchShape, Needs
from teachers.routing import measure_routing
from teachers.streaming import StreamedExperts, plan_slices, run_teacher

SIZE = Size(d_model=16, d_ff=32, experts=8, blocks=4, vocabulary=64)
B, S, T = 3, 20, 9
CPU, FLOAT32 = torch.device("cpu"), torch.float32
ENOUGH = 10**15


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model of four Switch layers in bfloat16, in 9 files."""
    directory = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(directory, SIZE)
    return directory


@pytest.fixture
def batches():
    torch.manual_seed(1)
    return [(torch.randint(2, 64, (B, s)), torch.randint(2, 64, (B, t))) for s, t in [(S, T)] * 5 + [(17, 7), (S, T)]]


@pytest.fixture
def reads(monkeypatch):
    """How often each tensor has been read."""
    counts = Counter()
    read_into = TensorReader.read_into

    def counted(reader, name, target):
        counts[name] += 1
        read_into(reader, name, target)

    monkeypatch.setattr(TensorReader, "read_into", counted)
    return counts


def run(directory, tmp_path, *, limit=None, extra=0, dtype=FLOAT32, **settings):
    """The teacher with a limit: by default the least that suffices, plus ``extra`` bytes."""
    stored = open_teacher(str(directory))
    settings = TeacherConfig(checkpoints={"e8": "x"}, evaluation_batch_size=B, **settings)
    needed = needs(stored, settings, dtype, BatchShape(B, S, T))
    settings = settings.model_copy(update={"memory": limit or needed.by_layer + extra})
    arguments = {"compute_dtype": dtype, "device": CPU, "lengths": (S, T), "directory": tmp_path}
    return run_teacher(stored, settings, **arguments)


def outputs(teacher, batches):
    return [output.hidden for output in teacher.forward(teacher.model, batches, lambda done: None)]


@pytest.mark.parametrize("feed_forward,tied", [("relu", True), ("relu", False), ("gated-gelu", False)])
@pytest.mark.parametrize("dtype", [None, FLOAT32, torch.bfloat16])
@pytest.mark.parametrize("stored_in", [FLOAT32, torch.bfloat16])
@torch.no_grad()
def test_hidden_states_are_the_same_bytes(tmp_path, batches, feed_forward, tied, dtype, stored_in):
    shape = {"feed_forward": feed_forward, "tie_word_embeddings": tied, "sparse_every": 2}
    shape = ModelConfig(d_model=16, d_ff=32, d_kv=8, num_heads=2, num_layers=4, **shape)
    model = build_teacher(shape, SwitchConfig(), 64, 4, pad=0, eos=1, seed=0)
    for _, layer in switch_layers(model):
        layer.mlp.router.weight.data *= 20
    save_teacher(model.to(stored_in), tmp_path / "teacher")
    capacity = {"capacity_factor_eval": 1.1}
    teacher = run(tmp_path / "teacher", tmp_path, dtype=dtype, **capacity)
    whole = read_teacher(open_teacher(str(tmp_path / "teacher")), SwitchConfig(**capacity), compute_dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        for found, batch in zip(outputs(teacher, batches), batches, strict=True):
            expected, _ = hidden_states(whole, *batch)
            assert torch.equal(found, expected) and found.dtype == expected.dtype
    assert max(layer.statistics.dropped_fraction for _, layer in switch_layers(whole)) > 0
    assert all(layer.mlp.wi.is_meta for _, layer in switch_layers(teacher.model))


@pytest.mark.parametrize("extra,buffers,slices", [(0, 1, 5), (12_000, 1, 3), (45_000, 2, 1)])
def test_each_expert_is_read_once_per_slice(checkpoint, tmp_path, batches, reads, extra, buffers, slices):
    teacher = run(checkpoint, tmp_path, extra=extra, dtype=torch.bfloat16)
    assert teacher.streamed._buffers == buffers
    experts = {name: 0 for name in open_teacher(str(checkpoint)).reader.tensors if ".experts." in name}
    before = reads.copy()
    outputs(teacher, batches[:1] * 5)
    reads -= before
    assert reads == dict.fromkeys(experts, slices) and len(experts) == 4 * 8 * 2
    assert teacher.streamed.bytes_read == slices * 4 * 8 * 2 * 16 * 32 * 2


def test_quality_and_routing_are_those_of_the_teacher_in_memory(checkpoint, tmp_path, batches):
    found = []
    for teacher in (run(checkpoint, tmp_path, extra=5000), run(checkpoint, tmp_path, limit=ENOUGH)):
        with measure_routing(teacher.model) as routing:
            quality, losses = negative_log_perplexity(teacher.model, batches, forward=teacher.forward)
        found.append((quality, losses.tolist(), *(part.tolist() for part in routing(make_accelerator("float32"))[1:])))
    assert found[0] == found[1]


def label(teacher, directory, **arguments):
    make_labels(
        teacher.model,
        RandomExamples(64, S, T),
        LabelsConfig(num_tokens=4),
        directory,
        count=20,
        temperature=1.0,
        batch_size=B,
        accelerator=make_accelerator("float32"),
        origin={},
        progress=directory.with_suffix(".json"),
        forward=teacher.forward,
        **arguments,
    )
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_labels_are_the_same_bytes_and_progress_never_falls(checkpoint, tmp_path):
    seen = []
    streamed = label(
        run(checkpoint, tmp_path, extra=5000),
        tmp_path / "streamed",
        on_batch=lambda done, count, metrics: seen.append((done, metrics)),
    )
    assert streamed == label(run(checkpoint, tmp_path, limit=ENOUGH), tmp_path / "whole")
    done = [one for one, _ in seen]
    assert done == sorted(done) and done[-1] == 20 and len(set(done)) > 7
    assert all(metrics["tokens_per_second"] > 0 for _, metrics in seen)


@pytest.mark.parametrize("kill_at", [2, 15])
def test_a_killed_slice_is_computed_again(checkpoint, tmp_path, monkeypatch, kill_at):
    """Killed in the first and in the second slice of two or three batches; labels of the first are not made again."""
    monkeypatch.setattr("distill.data.make_labels._BATCHES_PER_UNIT", 2)
    expected = label(run(checkpoint, tmp_path, limit=ENOUGH), tmp_path / "whole")

    def die(done, count, metrics):
        if done >= kill_at and "batches" in metrics:
            raise KeyboardInterrupt

    teacher = run(checkpoint, tmp_path, extra=12_000)
    assert 2 <= teacher.forward.slice_bytes // (4 * SIZE.d_model * B * (S + T)) <= 3
    with pytest.raises(KeyboardInterrupt):
        label(teacher, tmp_path / "killed", on_batch=die)
    seen = []
    again = label(
        run(checkpoint, tmp_path, extra=12_000),
        tmp_path / "killed",
        on_batch=lambda done, count, metrics: seen.append(done),
    )
    assert again == expected and (seen[0] >= 6) == (kill_at == 15)


def test_the_next_layer_is_read_while_one_computes(checkpoint):
    stored = open_teacher(str(checkpoint))
    for buffers in (1, 2):
        model = read_teacher(stored, SwitchConfig(), experts=False)
        streamed = StreamedExperts(stored, model, compute_dtype=None, buffers=buffers)
        layer = 8 * 2 * 16 * 32 * 2
        with streamed.in_place("encoder.block.1"):
            if buffers == 2:
                streamed._reads["encoder.block.3"].result(timeout=20)
            assert not model.encoder.block[1].layer[1].mlp.wi.is_meta
            assert streamed.bytes_read == buffers * layer
        assert model.encoder.block[1].layer[1].mlp.wi.is_meta
        with streamed.in_place("encoder.block.2"):  # a dense block
            streamed._reads["encoder.block.3"].result(timeout=20)
            assert streamed.bytes_read == 2 * layer


def test_an_interrupted_pass_stops_reading_and_a_later_one_begins_anew(checkpoint, tmp_path, batches, monkeypatch):
    teacher = run(checkpoint, tmp_path, extra=40_000)
    expected = outputs(teacher, batches)
    held, begun, read_into = threading.Event(), threading.Event(), TensorReader.read_into

    def slow(reader, name, target):
        if name.startswith("encoder.block.3"):
            begun.set()
            held.wait(20)
        read_into(reader, name, target)

    read = teacher.streamed.bytes_read
    monkeypatch.setattr(TensorReader, "read_into", slow)
    with pytest.raises(KeyboardInterrupt), teacher.streamed.in_place("encoder.block.1"):
        begun.wait(20)
        threading.Timer(0.2, held.set).start()
        raise KeyboardInterrupt
    assert teacher.streamed.bytes_read - read == (8 * 2 + 1) * 16 * 32 * 2  # one tensor of the second layer
    assert all(layer.mlp.wi.is_meta for _, layer in switch_layers(teacher.model))
    for one, other in zip(outputs(teacher, batches), expected, strict=True):
        assert torch.equal(one, other)


def test_a_file_that_becomes_unreadable_is_an_error_of_the_pass(checkpoint, tmp_path, batches, monkeypatch):
    teacher = run(checkpoint, tmp_path)
    monkeypatch.setattr(TensorReader, "read_into", lambda *_: (_ for _ in ()).throw(OSError("unplugged")))
    with pytest.raises(OSError, match="unplugged"):
        outputs(teacher, batches)


def test_the_limit_decides(checkpoint, tmp_path):
    stored = open_teacher(str(checkpoint))
    needed = needs(stored, SwitchConfig(), FLOAT32, BatchShape(B, S, T))
    in_memory = run(checkpoint, tmp_path, limit=needed.whole)
    assert in_memory.forward is by_batch and in_memory.sentence is in_memory.streamed is None
    assert not any(parameter.is_meta or parameter.requires_grad for parameter in in_memory.model.parameters())
    assert (
        "layer by layer: 65.5 kB of experts are read for every"
        in run(checkpoint, tmp_path, limit=needed.whole - 1).sentence
    )
    run(checkpoint, tmp_path)
    with pytest.raises(
        UserError, match=r"needs .* kB of memory, or .* kB layer by layer, but .*; raise teacher.memory"
    ):
        run(checkpoint, tmp_path, extra=-1)


def test_without_a_limit_the_free_memory_decides(checkpoint, tmp_path, monkeypatch):
    stored = open_teacher(str(checkpoint))
    needed = needs(stored, SwitchConfig(), FLOAT32, BatchShape(B, S, T))
    arguments = {"compute_dtype": FLOAT32, "device": CPU, "lengths": (S, T), "directory": tmp_path}
    settings = TeacherConfig(checkpoints={"e8": "x"}, evaluation_batch_size=B)
    for free, streams in ((needed.whole, False), (needed.whole - 1, True)):
        monkeypatch.setattr("teachers.memory.memory_limit", lambda free=free: free)
        assert (run_teacher(stored, settings, **arguments).streamed is not None) == streams


GB = 10**9


@pytest.mark.parametrize(
    "limit,layers,free_disk,plan",
    [
        (60 * GB, 12, 999 * GB, (2, 38 * GB, 38 * GB)),  # two layers of 10 GB, 2 GB for all else
        (60 * GB, 3, 999 * GB, (2, 38 * GB, 30 * GB)),  # slices no larger than the experts
        (25 * GB, 12, 999 * GB, (1, 13 * GB, 13 * GB)),  # reading ahead would take most of the memory
        (13 * GB, 300, 999 * GB, (1, 1 * GB, 62.5 * GB)),  # a slice of 1 GB is much less than what pays
        (13 * GB, 300, 40 * GB, (1, 1 * GB, 20 * GB)),
        (13 * GB, 300, 3 * GB, (1, 1 * GB, 1 * GB)),
    ],
)
def test_memory_is_divided_between_experts_and_states(tmp_path, monkeypatch, limit, layers, free_disk, plan):
    needed = Needs(1 * GB, {f"encoder.block.{number}": 10 * GB for number in range(layers)}, 24, 1 * GB)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free_disk))
    assert plan_slices(needed, limit, GB // 10, CPU, tmp_path) == plan


def test_the_memory_of_a_process_stays_near_the_limit(tmp_path, monkeypatch):
    """The margin is smaller than half of the experts, and the peak is far below that of the teacher in memory."""
    monkeypatch.setenv("MKL_DISABLE_FAST_MM", "1")  # else MKL keeps buffers of up to 100 MB for products in float32
    size = Size(d_model=128, d_ff=512, experts=128, blocks=12, vocabulary=512)
    write_checkpoint(tmp_path / "teacher", size)
    megabytes, experts = 130 if multiplies_bfloat16() else 215, 402_653_184  # the computation is in float32 then
    found = in_new_process(tmp_path, f"{megabytes}MB", size, Task(48, BatchShape(16, 256, 64)))
    assert found["experts"] == found["read"] == experts and found["slices"] == 1
    assert found["peak"] < (megabytes + 60) * 1_000_000
