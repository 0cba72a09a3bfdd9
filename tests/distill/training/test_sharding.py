"""Models that are sharded by block over 2 and 4 gloo processes, against the whole model in one process."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch.distributed.tensor import DTensor

from distill.config import ModelConfig
from distill.models.build import build_dense
from distill.models.t5_forward import CALL
from distill.training.sharding import gathered_parameters, shard, unshard
from distill.training.train_modules import HardLabels
from teachers.build import build_teacher
from teachers.config import SwitchConfig
from teachers.train_module import HardLabelsAndLoadBalance

SHAPE = ModelConfig(d_model=16, d_ff=32, d_kv=8, num_heads=3, num_layers=3, sparse_every=1, dropout=0.0)


def make_objective(kind: str):
    if kind == "dense":
        return HardLabels(build_dense(SHAPE, 64, pad=0, eos=1, seed=0))
    switch = SwitchConfig(jitter=0.0)
    teacher = build_teacher(SHAPE, switch, 64, 3, pad=0, eos=1, seed=0)
    return HardLabelsAndLoadBalance(teacher, load_balancing_weight=0.01)


def batch_of(process: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(process)
    input_ids = torch.randint(2, 60, (3, 11), generator=random)
    input_ids[0, 7:] = 0
    return input_ids, torch.randint(2, 60, (3, 5), generator=random)


def gathered(objective) -> list[str]:
    """The blocks, and "root", that have full weights in this process."""
    found = set()
    for name, parameter in objective.named_parameters():
        if not isinstance(parameter, DTensor):
            found.add(name.partition(".layer.")[0] if ".block." in name else "root")
    return sorted(found)


def observing(name: str, gathering, objective, during: list):
    """A method like ``gathering``, which adds to ``during`` what has full weights while its function runs."""

    def call(function, *arguments):
        def observed(*arguments):
            during.append((name, gathered(objective)))
            return function(*arguments)

        return gathering(observed, *arguments)

    return call


def observe(process: int, processes: int, directory: Path, kind: str) -> None:
    """Take two backward passes and write observations as JSON, and the gradients in the first process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=process, world_size=processes)
    objective, during = make_objective(kind), []
    sharded = shard(objective, torch.device("cpu"))
    for name, module in objective.named_modules():
        if hasattr(module, CALL) and ".layer." not in name:
            setattr(module, CALL, observing(name, getattr(module, CALL), objective, during))
    after, losses = [], []
    for _ in range(2):  # as two micro-batches
        loss, _ = sharded(*batch_of(process))
        after.append(gathered(objective))
        (loss * processes).backward()  # FSDP averages
        after.append(gathered(objective))
        losses.append(loss.item())
    gradients = {name: parameter.grad.full_tensor() for name, parameter in objective.named_parameters()}
    with gathered_parameters(objective, keep=process == 0):
        after.append(gathered(objective))
    after.append(gathered(objective))
    unshard(objective)
    again = shard(objective, torch.device("cpu"))(*batch_of(process))[0]  # as for another length of training
    again.backward()
    unshard(objective)
    if process == 0:
        torch.save([gradients, dict(objective.named_parameters())], directory / "gradients.pt")
    found = {"during": during, "after": after, "losses": losses, "again": again.item()}
    (directory / f"{process}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[("dense", 2), ("sparse", 4)], ids=["dense 2", "sparse 4"])
def observed(request, tmp_path_factory):
    kind, processes = request.param
    directory = tmp_path_factory.mktemp("sharded")
    arguments = (processes, directory, kind)
    multiprocessing.start_processes(observe, arguments, processes, start_method="fork")
    ranks = [json.loads((directory / f"{rank}.json").read_text()) for rank in range(processes)]
    return kind, ranks, torch.load(directory / "gradients.pt", weights_only=False)


def test_losses_gradients_and_weights_are_those_of_one_process(observed):
    kind, ranks, (gradients, weights) = observed
    objective = make_objective(kind)
    for process, rank in enumerate(ranks):
        loss, _ = objective(*batch_of(process))
        (2 * loss).backward()
        assert [*rank["losses"], rank["again"]] == pytest.approx([loss.item()] * 3, rel=1e-6)
    expected = dict(objective.named_parameters())
    assert gradients.keys() == expected.keys()
    for name, parameter in expected.items():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-4, rtol=1e-4)
        assert torch.equal(weights[name], parameter)


def test_a_block_is_gathered_for_its_forward_pass_alone(observed):
    for rank in observed[1]:
        blocks = [f"model.{stack}.block.{number}" for stack in ("encoder", "decoder") for number in range(3)]
        assert [name for name, _ in rank["during"]] == blocks * 2
        assert all(full == [name, "root"] for name, full in rank["during"])


def test_all_weights_are_shards_between_the_steps(observed):
    everything = sorted({name for name, _ in observed[1][0]["during"]} | {"root"})
    for process, rank in enumerate(observed[1]):
        kept = [] if process else everything
        assert rank["after"] == [["root"], [], ["root"], [], kept, []]
