"""Divided experts on 2 and 4 gloo processes, against the undivided teacher in the same process."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from distill.config import ModelConfig
from distill.data.examples import Batch
from distill.evaluation import evaluate
from distill.models.t5_forward import hidden_states
from teachers.build import build_teacher, switch_layers
from teachers.config import SwitchConfig
from teachers.divided import share_of_experts
from teachers.load import open_teacher, read_teacher
from teachers.routing import measure_routing
from teachers.save import save_teacher

EXPERTS = 5  # no multiple of the number of processes
SWITCH = SwitchConfig(capacity_factor_eval=0.6)  # drops tokens


class Rows:
    """Nine examples of different lengths: five batches of two, which no number of processes above one shares evenly."""

    target_tokens = np.arange(1, 10)

    def __len__(self) -> int:
        return len(self.target_tokens)

    def batch(self, indices) -> Batch:
        random = torch.Generator().manual_seed(indices[0])
        ids, labels = (torch.randint(2, 60, (len(indices), 9), generator=random) for _ in range(2))
        for row, index in enumerate(indices):
            ids[row, index + 1 :], labels[row, index + 1 :] = 0, -100
        return Batch(ids, labels)


def evaluated(model, process: int, processes: int) -> list:
    """The quality, the losses, and the routing of all processes."""

    def reduce(value, how):
        if processes > 1:
            dist.all_reduce(value)
        return value

    accelerator = SimpleNamespace(
        process_index=process, num_processes=processes, autocast=nullcontext, device=torch.device("cpu"), reduce=reduce
    )
    with measure_routing(model) as routing:
        quality, losses = evaluate(model, Rows(), batch_size=2, accelerator=accelerator)
    summary = routing(accelerator)
    return [quality, *losses.tolist(), *summary.load.flatten().tolist(), *summary.overall_metrics().values()]


def compare(process: int, processes: int, directory: Path) -> None:
    """Write the largest differences, and the dropped tokens of this process, as JSON."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=process, world_size=processes)
    stored, found = open_teacher(str(directory / "teacher")), {}
    whole, divided = (
        read_teacher(stored, SWITCH, process=process * part, processes=1 + (processes - 1) * part) for part in (0, 1)
    )
    torch.manual_seed(process)  # each process has a batch of its own, with its own length and padding
    input_ids, labels = torch.randint(2, 60, (3, 20 + 7 * process)), torch.randint(2, 60, (3, 9))
    input_ids[0, 12:], labels[1, 5:] = 0, -100
    counted = (labels != -100).flatten()
    for drops in (True, False):
        outputs = []
        for model in (whole, divided):
            for _, layer in switch_layers(model):
                layer.mlp.drops_tokens = drops
            with torch.no_grad():
                outputs.append(hidden_states(model, input_ids, labels)[0][counted])
            outputs.append(torch.stack([layer.statistics.dropped_fraction for _, layer in switch_layers(model)]))
        same, name = torch.equal(outputs[1], outputs[3]), "dropping" if drops else "unlimited"
        found[name] = [float((outputs[0] - outputs[2]).abs().max()), same, float(outputs[3].max())]
    found["evaluated"] = [
        evaluated(model, process * part, 1 + (processes - 1) * part) for part, model in enumerate((whole, divided))
    ]
    (directory / f"{process}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=["relu", "gated-gelu"])
def teacher(request, tmp_path_factory):
    shape = ModelConfig(d_model=16, d_ff=32, d_kv=8, num_heads=2, num_layers=2, feed_forward=request.param)
    model = build_teacher(shape, SWITCH, 64, EXPERTS, pad=0, eos=1, seed=0)
    for _, layer in switch_layers(model):
        layer.mlp.router.weight.data *= 5  # unbalanced, so that the processes exchange unequal numbers of tokens
    directory = tmp_path_factory.mktemp("divided") / "teacher"
    save_teacher(model, directory)
    return directory


@pytest.mark.parametrize("processes", [2, 4])
def test_divided_teachers_are_the_undivided_one(teacher, tmp_path, processes):
    (tmp_path / "teacher").symlink_to(teacher)
    multiprocessing.start_processes(compare, (processes, tmp_path), processes, start_method="fork")
    for process in range(processes):
        found = json.loads((tmp_path / f"{process}.json").read_text())
        assert found["evaluated"][0] == pytest.approx(found.pop("evaluated")[1], abs=1e-5)
        assert len(found) == 2
        for difference, same, _ in found.values():
            assert difference < 1e-5 and same
        assert found["dropping"][2] > 0.1 and found["unlimited"][2] == 0


@pytest.mark.parametrize("processes", [2, 4, 7])
def test_each_process_reads_and_holds_its_share(teacher, processes):
    whole, rows = read_teacher(open_teacher(str(teacher)), SWITCH), 0
    for process in range(processes):
        stored = open_teacher(str(teacher))
        before = stored.reader.bytes_read
        own = read_teacher(stored, SWITCH, process=process, processes=processes)
        share = share_of_experts(EXPERTS, process, processes)
        rows += len(share)
        for (_, mine), (_, all_of_them) in zip(switch_layers(own), switch_layers(whole), strict=True):
            assert torch.equal(mine.mlp.wi, all_of_them.mlp.wi[share.start : share.stop])
            assert torch.equal(mine.mlp.wo, all_of_them.mlp.wo[share.start : share.stop])
        held = sum(parameter.nbytes for parameter in own.parameters())
        assert stored.reader.bytes_read - before == held
    assert rows == EXPERTS
