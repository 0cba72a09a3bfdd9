"""Models that are sharded by block over 2 and 4 gloo processes, against the whole model in one process."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch.distributed.tensor import DTensor

from distill.config import ModelConfig, TrainingConfig
from distill.models.build import build_dense
from distill.models.t5_forward import CALL
from distill.optim.build import make_optimizer
from distill.training.sharding import gathered_parameters, shard, unshard
from distill.training.train_modules import HardLabels
from teachers.build import build_teacher
from teachers.config import SwitchConfig
from teachers.train_module import HardLabelsAndLoadBalance

SHAPE = ModelConfig(d_model=16, d_ff=32, d_kv=8, num_heads=3, num_layers=3, sparse_every=1, dropout=0.0)


def make_objective(kind: str, process: int = 0, processes: int = 1):
    if kind == "dense":
        return HardLabels(build_dense(SHAPE, 64, pad=0, eos=1, seed=0))
    switch = SwitchConfig(jitter=0.0)
    teacher = build_teacher(SHAPE, switch, 64, 3, pad=0, eos=1, seed=0, process=process, processes=processes)
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


def update_with_each_optimizer(objective, process: int) -> dict[str, torch.Tensor]:
    """Clip the gradients and update the weights, once with each optimizer; returns the full weights and the norm."""
    norm = torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
    for name in ("adamw", "adafactor", "muon"):
        make_optimizer(objective, TrainingConfig(optimizer=name, learning_rate=0.01)).step()
    with gathered_parameters(objective):
        weights = {name: parameter.detach().clone() for name, parameter in objective.named_parameters()}
    return {**weights, "norm": norm.full_tensor() if isinstance(norm, DTensor) else norm}


def observe(process: int, processes: int, directory: Path, kind: str) -> None:
    """Take two backward passes and write observations as JSON, and the gradients in the first process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=process, world_size=processes)
    objective, during = make_objective(kind, process, processes), []
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
    updated = update_with_each_optimizer(objective, process)
    unshard(objective, torch.device("cpu"))
    again = shard(objective, torch.device("cpu"))(*batch_of(process))[0]  # as for another length of training
    again.backward()
    unshard(objective, torch.device("cpu"))
    if process == 0:
        torch.save([gradients, updated], directory / "gradients.pt")
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


def test_losses_gradients_and_updates_are_those_of_one_process(observed):
    kind, ranks, (gradients, updated) = observed
    objective = make_objective(kind)
    for process, rank in enumerate(ranks):
        loss, _ = objective(*batch_of(process))
        (2 * loss).backward()
        assert rank["losses"] == pytest.approx([loss.item()] * 2, rel=1e-6)
    expected = dict(objective.named_parameters())
    assert gradients.keys() == expected.keys()
    for name, parameter in expected.items():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-4, rtol=1e-4)
        parameter.grad = gradients[name]  # AdamW's first update is a sign, of which rounding may be the only cause
    alone = update_with_each_optimizer(objective, 0)
    assert updated.keys() == alone.keys()
    for name, values in alone.items():
        torch.testing.assert_close(updated[name], values, atol=1e-5, rtol=1e-5)
    assert [rank["again"] for rank in ranks] == pytest.approx(
        [objective(*batch_of(process))[0].item() for process in range(len(ranks))], rel=1e-5
    )


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
